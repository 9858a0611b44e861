"""Differentially private training (DP-SGD) for a trainer that asks for it: the door to opacus.

Each step takes every row with the same small probability (Poisson sampling, which the accountant assumes), clips each
row's gradient and adds noise. What the accountant vouches for is kept beside the weights and becomes part of the
candidate. The draws follow the trial's seed, so that the training can be repeated: epsilon counts towards those who do
not know the seed. Leaves to others: the attack from below (mlops/evaluation), which loss (a mean over rows, never over
groups).
Sources: Abadi et al., CCS 2016; accountants: Gopi, Lee & Wutschitz, NeurIPS 2021 (PRV); Mironov, CSF 2017 (RDP).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlops.datasets.reader import Batch
from mlops.errors import TrainingError
from mlops.files import write_atomically
from mlops.training.audit_pool import select_rows
from mlops.training.seeds import derive_seed

FILE = "privacy.json"
LEAST_ROWS = 32
"""Expected rows of a step; then an empty step, which would be skipped, has less than one chance in 10^13."""


@dataclass(frozen=True)
class PrivateTraining:
    """What a trainer trains with instead of its own module, optimizer and batches."""

    model: torch.nn.Module
    """To call in the training step; shares its parameters with the module that is evaluated and saved."""
    optimizer: torch.optim.Optimizer
    """To step, and to keep in the state of `worker.epochs`."""
    noise: float
    """Of the gradients' sum, as a multiple of `clip`."""
    rate: float
    """Probability of each row to be in a step."""
    steps_per_epoch: int
    delta: float
    _rows: Batch
    _seed: int

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The steps of an epoch: each row in each step with probability `rate`."""
        for step in range(self.steps_per_epoch):
            dice = torch.Generator().manual_seed(derive_seed(self._seed, "poisson", epoch, step) % 2**63)
            chosen = torch.rand(len(self._rows.rows), generator=dice) < self.rate
            if bool(chosen.any()):
                yield select_rows(self._rows, chosen)

    def spend(self, *, epochs: int) -> dict[str, Any]:
        """What the accountant says after so many epochs: epsilon, delta, its name and what it was computed from."""
        steps = epochs * self.steps_per_epoch
        name, epsilon = account(noise=self.noise, rate=self.rate, steps=steps, delta=self.delta)
        given = {"noise": self.noise, "rate": self.rate, "steps": steps}
        return {"epsilon": epsilon, "delta": self.delta, "accountant": name, **given}


def make_private(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    batches: Iterable[Batch],
    noise: float,
    clip: float,
    batch_size: int,
    delta: float,
    seed: int,
) -> PrivateTraining:
    """Wrap module and optimizer of one worker.

    Args:
        model: Of layers that opacus knows, without batch normalisation.
        optimizer: Over its parameters.
        batches: All training rows, which are held in memory.
        noise: Of the gradients' sum, as a multiple of `clip`.
        clip: Largest norm of a row's gradient.
        batch_size: Expected rows of a step.
        delta: At which epsilon is stated.
        seed: Of the draws.

    Raises:
        TrainingError: Steps too small, no noise, or a layer that mixes rows.
    """
    from opacus import GradSampleModule  # slow to load; only private trainers need it
    from opacus.optimizers import DPOptimizer
    from opacus.validators import ModuleValidator

    rows = _join(list(batches))
    count = len(rows.rows)
    if not (noise > 0 and clip > 0 and LEAST_ROWS <= batch_size <= count):
        raise TrainingError(
            f"private training needs noise and clip above 0 and steps of {LEAST_ROWS} to {count} rows, "
            f"not noise {noise}, clip {clip}, {batch_size} rows"
        )
    flaws = ModuleValidator.validate(model, strict=False)
    if flaws:
        raise TrainingError(f"the module cannot be trained privately: {flaws[0]}", hint="use GroupNorm or LayerNorm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # opacus warns about its own use of hooks
        wrapped = GradSampleModule(model)
    # said at each step of a module whose first layer takes data; opacus needs no gradient there
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    private = DPOptimizer(
        optimizer, noise_multiplier=noise, max_grad_norm=clip, expected_batch_size=batch_size, loss_reduction="mean"
    )
    steps = max(1, round(count / batch_size))
    return PrivateTraining(wrapped, private, noise, batch_size / count, steps, delta, rows, seed)


def account(*, noise: float, rate: float, steps: int, delta: float) -> tuple[str, float]:
    """`(accountant, epsilon)` of so many steps: PRV, which is tight, or RDP where PRV cannot be computed."""
    from opacus.accountants import create_accountant  # slow to load

    for name in ("prv", "rdp"):
        accountant = create_accountant(name)
        accountant.history = [(noise, rate, steps)]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # both warn about orders and grids that they choose themselves
                epsilon = float(accountant.get_epsilon(delta=delta))
        except (ValueError, RuntimeError, ArithmeticError, MemoryError):
            continue
        if 0 <= epsilon < float("inf"):
            return name, epsilon
    raise TrainingError(f"no accountant can bound epsilon of noise {noise}, rate {rate:.4g}, {steps} steps")


def keep_privacy(trial_folder: Path, spent: dict[str, Any]) -> None:
    """Write what was spent beside the weights."""
    write_atomically(trial_folder / FILE, json.dumps(spent, sort_keys=True))


def load_privacy(trial_folder: Path) -> dict[str, Any] | None:
    """What a trial spent; None for an ordinary training."""
    path = trial_folder / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _join(batches: list[Batch]) -> Batch:
    def joined(name: str) -> dict[str, torch.Tensor]:
        columns = [getattr(batch, name) for batch in batches]
        return {column: torch.cat([part[column] for part in columns]) for column in columns[0]}

    weights = [batch.weight for batch in batches if batch.weight is not None]
    return Batch(
        features=joined("features"),
        label=torch.cat([batch.label for batch in batches]),
        sensitive=joined("sensitive"),
        weight=torch.cat(weights) if weights else None,
        positions=torch.cat([batch.positions for batch in batches]),
        rows=torch.cat([batch.rows for batch in batches]),
    )
