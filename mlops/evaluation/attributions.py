"""How much each input moved an answer, by Captum: Shapley values over the columns of a table, integrated gradients
over the values of a tensor.

What is explained is the log-odds of one class. A table's row is compared with training rows drawn by seed, column by
column (interventional Shapley values: Strumbelj & Kononenko 2014; Lundberg & Lee 2017), so categories need no
relaxation and the artefact itself can be asked. A tensor is compared with zeros along a straight line (Sundararajan et
al. 2017), which needs gradients.
Leaves to others: what is asked of attributions (checks/explainability.py, explaining.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation.judged import JudgedModel
from mlops.evaluation.verdicts import NotEvaluableError

if TYPE_CHECKING:
    import torch

    from mlops.training.contract import Contract

Floats = NDArray[np.float64]
Features = Mapping[str, NDArray[Any]]
LogOdds = Callable[[Features], Floats]
"""Columns of B rows to the log-odds `[B]` of the explained class."""
STEPS = 64
"""Of the integral of the gradients."""


@dataclass(frozen=True)
class Attributions:
    """N rows, D inputs."""

    inputs: tuple[str, ...]
    """Column names; values of a tensor are `name[3]`."""
    values: Floats
    """`[N, D]`, in log-odds: what the input added, against the comparison rows."""
    explained: Floats
    """`[N]`: log-odds of the row minus those of what it is compared with; the values should sum to it."""

    @property
    def completeness_error(self) -> Floats:
        """`[N]`, absolute, in log-odds."""
        error: Floats = np.abs(self.values.sum(axis=1) - self.explained)
        return error

    def shares(self) -> Floats:
        """`[N, D]`: signed part of each row's attribution; all zero where nothing was attributed."""
        total = np.abs(self.values).sum(axis=1, keepdims=True)
        found: Floats = self.values / np.where(total > 0, total, 1.0)
        return found

    def column_shares(self) -> dict[str, float]:
        """Column to the mean part of the absolute attribution that falls on it."""
        parts = np.abs(self.shares()).mean(axis=0)
        found: dict[str, float] = {}
        for name, part in zip(self.inputs, parts, strict=True):
            column = name.partition("[")[0]
            found[column] = found.get(column, 0.0) + float(part)
        return found


def moved_share(first: Attributions, second: Attributions) -> Floats:
    """`[N]`, 0 to 1: the part of a row's attribution that the second one gives to other inputs, or other signs."""
    found: Floats = np.abs(first.shares() - second.shares()).sum(axis=1) / 2
    return found


def log_odds_of_logits(logits: NDArray[Any], *, class_: int) -> Floats:
    """Log-odds of a class from logits `[B, C]`."""
    wide = logits.astype(np.float64)
    others = np.delete(wide, class_, axis=1)
    highest = others.max(axis=1, keepdims=True)
    found: Floats = wide[:, class_] - (highest[:, 0] + np.log(np.exp(others - highest).sum(axis=1)))
    return found


def attribute_table(
    log_odds: LogOdds, features: Features, *, background: Features, contract: Contract, seed: int, draws: int
) -> Attributions:
    """Shapley values of the columns of each row.

    Args:
        log_odds: What is explained.
        features: N rows of scalar inputs.
        background: M rows that each row is compared with, `draws` of them at random.
        contract: Names and types of the inputs.
        seed: Of the draws and of the orders in which columns are exchanged.
        draws: Comparison rows, each with one order of the columns and its reverse in turn.
    """
    import torch  # costs seconds to load
    from captum.attr import ShapleyValueSampling

    columns = contract.inputs
    own, others = (_as_matrix(rows, contract) for rows in (features, background))
    rng = np.random.default_rng(seed)

    def forward(matrix: torch.Tensor) -> torch.Tensor:
        table = matrix.numpy()
        rows = {column.name: table[:, index].astype(column.dtype) for index, column in enumerate(columns)}
        return torch.from_numpy(log_odds(rows))

    method, total = ShapleyValueSampling(forward), np.zeros_like(own)
    base = np.zeros(len(own))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        for _ in range(draws):
            compared = torch.from_numpy(others[rng.integers(len(others), size=len(own))])
            total += method.attribute(torch.from_numpy(own), baselines=compared, n_samples=1).numpy()
            base += forward(compared).numpy()
    explained = forward(torch.from_numpy(own)).numpy() - base / draws
    return Attributions(tuple(column.name for column in columns), total / draws, explained)


def attribute_tensors(module: torch.nn.Module, features: Features, *, contract: Contract, class_: int) -> Attributions:
    """Integrated gradients of each value of each input, from zero."""
    import torch  # costs seconds to load
    from captum.attr import IntegratedGradients

    names = [column.name for column in contract.inputs]
    given = tuple(torch.from_numpy(np.ascontiguousarray(features[name], dtype=np.float32)) for name in names)

    def forward(*tensors: torch.Tensor) -> torch.Tensor:
        logits = module(dict(zip(names, tensors, strict=True))).double()
        others = torch.cat([logits[:, :class_], logits[:, class_ + 1 :]], dim=1)
        return logits[:, class_] - others.logsumexp(dim=1)

    found = IntegratedGradients(forward).attribute(given, n_steps=STEPS, internal_batch_size=4096)
    values = np.concatenate([part.detach().numpy().reshape(len(part), -1) for part in found], axis=1)
    inputs = [
        f"{column.name}[{index}]" if column.shape else column.name
        for column in contract.inputs
        for index in range(int(np.prod(column.shape)))
    ]
    with torch.no_grad():
        explained = forward(*given) - forward(*(torch.zeros_like(part[:1]) for part in given))
    return Attributions(tuple(inputs), values.astype(np.float64), explained.numpy())


def attribute(
    model: JudgedModel, features: Features, *, background: Features, class_: int, seed: int, draws: int
) -> Attributions:
    """Attributions of the judged artefact, by the method that fits its inputs.

    Raises:
        NotEvaluableError: Tensors and categories together.
    """
    if not has_tensors(model.contract):
        ask = artefact_log_odds(model, class_=class_)
        return attribute_table(ask, features, background=background, contract=model.contract, seed=seed, draws=draws)
    return attribute_tensors(model.load_module(), features, contract=model.contract, class_=class_)


def attribute_module(
    module: torch.nn.Module, features: Features, *, background: Features, contract: Contract, class_: int, seed: int,
    draws: int,
) -> Attributions:  # fmt: skip
    """The same of a torch module, such as a sweep twin."""
    if has_tensors(contract):
        return attribute_tensors(module, features, contract=contract, class_=class_)
    ask = module_log_odds(module, class_=class_)
    return attribute_table(ask, features, background=background, contract=contract, seed=seed, draws=draws)


def has_tensors(contract: Contract) -> bool:
    """Whether integrated gradients are needed.

    Raises:
        NotEvaluableError: There are categories beside tensors, for which no method is at hand.
    """
    is_tensor = [bool(column.shape) for column in contract.inputs]
    if any(is_tensor) and any(column.kind == "category" for column in contract.inputs):
        raise NotEvaluableError("not-attributable", "inputs are tensors and categories at once: no method fits both")
    return any(is_tensor)


def artefact_log_odds(model: JudgedModel, *, class_: int) -> LogOdds:
    """Asks the artefact that will serve."""
    return lambda features: log_odds_of_logits(model.answer(features).logits, class_=class_)


def module_log_odds(module: torch.nn.Module, *, class_: int) -> LogOdds:
    """Asks a torch module."""
    import torch  # costs seconds to load

    def ask(features: Features) -> Floats:
        with torch.no_grad():
            logits = module({name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in features.items()})
        return log_odds_of_logits(logits.numpy(), class_=class_)

    return ask


def _as_matrix(features: Features, contract: Contract) -> Floats:
    return np.column_stack([features[column.name].astype(np.float64) for column in contract.inputs])
