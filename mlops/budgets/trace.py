"""Job traces for `mlops budget simulate`: the Muri files as they are, and a documented CSV.

The documented CSV has a header with `job_id, submit_s, accelerators, duration_s` and, if wanted, `priority, budget,
kind, minimum_accelerators, step_accelerators, model_name, batch_size`. A Muri trace has `num_gpu`, `submit_time` and
`duration` in milliseconds. Leaves to others: replaying (`simulate`).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlops.budgets.money import to_milli
from mlops.clock import SECOND_US
from mlops.errors import ProjectError

MURI_COLUMNS = frozenset({"job_id", "num_gpu", "submit_time", "duration"})
OWN_COLUMNS = frozenset({"job_id", "submit_s", "accelerators", "duration_s"})


@dataclass(frozen=True)
class Job:
    """One job of a trace."""

    job_id: str
    submitted_us: int
    units: int
    """Thousandths of an accelerator."""
    duration_us: int
    """With `units`, alone, without interruption."""
    priority: int = 500
    budget: str = "trace"
    kind: str = "gpu"
    minimum_units: int = 0
    step_units: int = 0
    features: Mapping[str, str] = field(default_factory=dict)
    """What a predictor may look at besides time and size."""


def read_trace(path: Path) -> tuple[Job, ...]:
    """Jobs in order of submission.

    Raises:
        ProjectError: Not a trace; `items` lists each broken line.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ProjectError(f"{path} cannot be read: {error}") from error
    columns = set(reader.fieldnames or ())
    if columns >= MURI_COLUMNS:
        parse = _parse_muri
    elif columns >= OWN_COLUMNS:
        parse = _parse_own
    else:
        needed = ", ".join(sorted(OWN_COLUMNS))
        raise ProjectError(f"{path} is not a trace", hint=f"the first line names the columns, at least {needed}")
    if not rows:
        raise ProjectError(f"{path} holds no job", hint="one line for each job, below the names of the columns")
    jobs, problems = [], []
    for number, row in enumerate(rows, start=2):
        try:
            jobs.append(_check(parse(row)))
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    if len({job.job_id for job in jobs}) != len(jobs):
        problems.append(f"{path}:1: a job_id stands twice")
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ProjectError(f"{path} has {count}", items=tuple(problems), hint="mend the lines named here")
    return tuple(sorted(jobs, key=lambda job: (job.submitted_us, job.job_id)))


def _number(row: Mapping[str, str | None], name: str, *, default: str = "") -> float:
    text = row.get(name) or default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name}: {text!r} is not a number" if text else f"{name} is missing")
    return value


def _parse_muri(row: Mapping[str, str]) -> Job:
    return Job(
        job_id=row["job_id"].rjust(8, "0"),
        submitted_us=round(_number(row, "submit_time") * 1_000),
        units=to_milli(_number(row, "num_gpu")),
        duration_us=round(_number(row, "duration") * 1_000),
        features={"model_name": row.get("model_name", ""), "batch_size": row.get("batch_size", "")},
    )


def _parse_own(row: Mapping[str, str]) -> Job:
    return Job(
        job_id=row["job_id"],
        submitted_us=round(_number(row, "submit_s") * SECOND_US),
        units=to_milli(_number(row, "accelerators")),
        duration_us=round(_number(row, "duration_s") * SECOND_US),
        priority=round(_number(row, "priority", default="500")),
        budget=row.get("budget") or "trace",
        kind=row.get("kind") or "gpu",
        minimum_units=to_milli(_number(row, "minimum_accelerators", default="0")),
        step_units=to_milli(_number(row, "step_accelerators", default="0")),
        features={"model_name": row.get("model_name") or "", "batch_size": row.get("batch_size") or ""},
    )


def _check(job: Job) -> Job:
    if job.units <= 0:
        raise ValueError(f"job {job.job_id} asks for no accelerator")
    if job.duration_us < 0 or job.submitted_us < 0:
        raise ValueError(f"job {job.job_id} has a negative time")
    return job
