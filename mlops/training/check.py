"""The trainer contract, tried out on a few rows on the CPU before a budget is touched.

The objective gets better by the optimizer's steps; a yield and a resume equal an uninterrupted run bit by bit; two runs
with one seed agree; the export answers like torch; the sample order does not depend on the number of workers; weights
do not depend on validation labels. Each violation names the line of the contract.
Leaves to others: reading the trainer (trainer.py), remembering the result (the caller).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mlops.datasets.reader import Batch
from mlops.errors import TrainingError
from mlops.training.attempt import AttemptResult, BatchSource
from mlops.training.contract import Contract
from mlops.training.local_attempt import LocalChannel, LocalTrial, first_point, run_local
from mlops.training.spec import SweepSpec
from mlops.training.trainer import Violation
from mlops.training.undone_steps import undone_steps
from mlops.training.worker import WRITES, seed_everything

CHECK_EPOCHS = 3
CHECK_ROWS = 1_024
LEARNT_AT_ONCE = 0.02
"""What gets no better after its first epoch was better there than untrained, by this share of the untrained value."""


class FewRows:
    """The first batches of a source, so that a check takes seconds."""

    def __init__(self, source: BatchSource, *, rows: int = CHECK_ROWS) -> None:
        self._source = source
        self._rows = rows

    def count_rows(self, split: str) -> int:
        """Of the whole split: row numbers are those of the whole."""
        return self._source.count_rows(split)

    def of_groups(self, groups: frozenset[int]) -> FewRows:
        """See `BatchSource`."""
        return FewRows(self._source.of_groups(groups), rows=self._rows)

    def batches(
        self,
        split: str,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        rank: int,
        world_size: int,
        start_step: int = 0,
        shuffle: bool = True,
        pin: bool = False,
    ) -> Iterator[Batch]:
        """See `BatchSource`; ends after `rows` rows."""
        size = max(world_size, min(batch_size, self._rows // 4))
        seen = 0
        for batch in self._source.batches(
            split,
            batch_size=size - size % world_size,
            seed=seed,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
            start_step=start_step,
            shuffle=shuffle,
            pin=pin,
        ):
            yield batch
            seen += len(batch.label) * world_size
            if seen >= self._rows:
                return


def check_trainer(
    spec: SweepSpec, *, trainer_file: Path, contract: Contract, source: BatchSource, say: Callable[[str], None]
) -> tuple[Violation, ...]:
    """Every line of the contract that does not hold; empty when the trainer may be paid for.

    Args:
        spec: The sweep; parameters are taken from the middle of its space.
        trainer_file: The trainer.
        contract: Columns and classes of the dataset.
        source: Its rows; only a few are used.
        say: Prints one line of progress.
    """
    few = FewRows(source)
    with tempfile.TemporaryDirectory(prefix="mlops-check-") as scratch:
        trial = LocalTrial(
            spec=spec,
            trainer_file=trainer_file,
            params=first_point(spec),
            reserved={"columns": contract.column_sizes(), "classes": len(contract.classes)},
            folder=Path(scratch) / "whole",
            seed=spec.seed,
            epochs=CHECK_EPOCHS,
        )
        heard = LocalChannel()
        whole = run_local(trial, source=few, channel=heard)
        if whole.outcome != "complete":
            line = "writes" if WRITES in whole.reason else "runs"
            text = f"the trainer does not come to its end: {whole.reason}; `mlops trainer run` shows more"
            return (Violation(line, text),)
        say(f"runs: {CHECK_EPOCHS} epochs on {CHECK_ROWS} rows")
        unsteady = _check_resume(trial, whole, heard, source=few, folder=Path(scratch))
        is_steady = not any(violation.line == "deterministic" for violation in unsteady)
        found = [
            *_check_learns(trial, spec, heard, source=few, folder=Path(scratch)),
            *unsteady,
            *(_check_unseen(trial, whole, source=few, folder=Path(scratch)) if is_steady else ()),
            *_check_order(few),
            *_check_export(trial, whole, export=spec.export, contract=contract, source=few),
        ]
    for violation in found:
        say(f"violated: {violation.line}: {violation.text}")
    return tuple(found)


def _check_learns(
    trial: LocalTrial, spec: SweepSpec, heard: LocalChannel, *, source: FewRows, folder: Path
) -> list[Violation]:
    """Steps must change what is reported, and for the better: from epoch to epoch, or far from the untrained model."""
    metric, is_minimised = spec.objectives[0].metric, spec.objectives[0].direction == "minimize"
    values = [report[metric] for report in heard.reports]
    idle = LocalChannel()
    with undone_steps() as undone:
        run_local(replace(trial, folder=folder / "untrained"), source=source, channel=idle)
    untrained = [report[metric] for report in idle.reports]
    if undone.count and untrained == values:
        text = f"{metric} is the same in each epoch when every step of the optimizer is undone: {_numbers(values)}"
        hint = "is the optimizer over the parameters of the module in `state`, and its learning rate above 0?"
        return [Violation("learns", f"{text}; {hint}")]
    gain = 1 if is_minimised else -1  # times what a number falls by
    if max(gain * (values[0] - later) for later in values[1:]) > 0:
        return []
    start = untrained[0] if undone.count and untrained else values[0]
    if gain * (start - values[0]) > LEARNT_AT_ONCE * abs(start):
        return []
    text = f"{metric} does not get better over {len(values)} epochs: {_numbers(values)}"
    text += f", and is {start:.4g} untrained" if undone.count else ""
    hint = "is optimizer.step() called on the parameters of the module in `state`? If it learned all in its first epoch"
    return [Violation("learns", f"{text}; {hint}, the middle of the space has too large steps or too small batches")]


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _check_resume(
    trial: LocalTrial, whole: AttemptResult, heard: LocalChannel, *, source: FewRows, folder: Path
) -> list[Violation]:
    again = run_local(replace(trial, folder=folder / "again"), source=source, channel=LocalChannel())
    if again.weights_sha256 != whole.weights_sha256:
        text = (
            "two runs with one seed in one process give different weights; draw randomness from torch, numpy or "
            "random only, and keep nothing in globals between runs"
        )
        return [Violation("deterministic", text)]
    parts = replace(trial, folder=folder / "parts")
    run_local(parts, source=source, channel=LocalChannel(yield_after=1))
    later = LocalChannel()
    resumed = run_local(replace(parts, attempt=1), source=source, channel=later)
    if resumed.weights_sha256 != whole.weights_sha256 or later.reports != heard.reports[1:]:
        text = (
            "a resumed run differs from an uninterrupted one; give worker.epochs(state) everything that changes "
            "between epochs: model, optimizer, scheduler"
        )
        return [Violation("resumes", text)]
    return []


class _Relabelled(FewRows):
    """The same rows with other labels in the validation split."""

    def batches(self, split: str, **options: Any) -> Iterator[Batch]:
        """See `BatchSource`."""
        for batch in super().batches(split, **options):
            label = batch.label.roll(1) if split == "validation" else batch.label
            yield replace(batch, label=label)


def _check_unseen(trial: LocalTrial, whole: AttemptResult, *, source: FewRows, folder: Path) -> list[Violation]:
    other = _Relabelled(source, rows=CHECK_ROWS)
    again = run_local(replace(trial, folder=folder / "unseen"), source=other, channel=LocalChannel())
    if again.weights_sha256 == whole.weights_sha256:
        return []
    text = "the weights depend on the labels of the validation rows, on which the winner is chosen"
    return [Violation("unseen", f"{text}; train and schedule on the split `train` alone")]


def _check_order(source: FewRows) -> list[Violation]:
    def rows(world_size: int) -> list[int]:
        parts = [
            [b.rows for b in source.batches("train", batch_size=64, seed=1, epoch=0, rank=r, world_size=world_size)]
            for r in range(world_size)
        ]
        return [int(row) for step in zip(*parts, strict=True) for row in _interleave(list(step))]

    if rows(1) != rows(2):
        return [Violation("order", "two workers read the rows in another order than one: the dataset's plan is broken")]
    return []


def _interleave(parts: list[torch.Tensor]) -> list[int]:
    total = sum(len(part) for part in parts)
    return [int(parts[index % len(parts)][index // len(parts)]) for index in range(total)]


def _check_export(
    trial: LocalTrial, whole: AttemptResult, *, export: str, contract: Contract, source: FewRows
) -> list[Violation]:
    from safetensors.torch import load_file

    from mlops.training.export import PARITY_BOUND
    from mlops.training.onnx_export import export_onnx, measure_parity
    from mlops.training.torch_serving import measure_company
    from mlops.training.trainer import load_trainer

    seed_everything(trial.seed)
    module: torch.nn.Module = load_trainer(trial.trainer_file).model({**trial.params, **trial.reserved})
    some = source.batches("validation", batch_size=256, seed=0, epoch=0, rank=0, world_size=1, shuffle=False)
    batch = next(iter(some))
    try:
        module.load_state_dict(load_file(whole.weights_file), strict=True)
        if export == "torch":
            return _check_company(*measure_company(module, contract=contract, columns=batch.features))
        content = export_onnx(module, contract=contract)
        rows, difference = measure_parity(module, onnx_bytes=content, columns=batch.features)
    except (TrainingError, RuntimeError) as error:
        hint = f" ({error.hint})" if isinstance(error, TrainingError) and error.hint else ""
        return [Violation("exports", f"{str(error).splitlines()[0]}{hint}")]
    if not difference <= PARITY_BOUND:
        text = f"ONNX differs from torch by {difference:.3g} on {rows} rows, bound {PARITY_BOUND:g}"
        return [Violation("exports", f"{text}; compute in float32 and leave out operations that ONNX rounds")]
    return []


def _check_company(rows: int, difference: float) -> list[Violation]:
    from mlops.training.export import PARITY_BOUND

    if difference <= PARITY_BOUND:
        return []
    text = f"the answer to a row changes by {difference:.3g} with the {rows} rows beside it, bound {PARITY_BOUND:g}"
    return [Violation("exports", f"{text}; answer each row by itself: the server lets requests share a batch")]


def as_facts(violations: tuple[Violation, ...]) -> dict[str, Any]:
    """For a record of the check."""
    return {"violations": [{"line": item.line, "text": item.text} for item in violations]}
