"""Job traces for `mlops budget simulate`: the Muri files as they are, and a documented CSV.

The documented CSV has a header with `job_id, submit_s, accelerators, duration_s` and, if wanted, `priority, budget,
kind, minimum_accelerators, step_accelerators, model_name, batch_size`. A Muri trace has `num_gpu`, `submit_time` and
`duration` in milliseconds. Leaves to others: replaying (`simulate`).
"""

from __future__ import annotations

import csv
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
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ProjectError(f"{path} cannot be read: {error}") from error
    columns = set(rows[0]) if rows else set()
    if columns >= MURI_COLUMNS:
        parse = _parse_muri
    elif columns >= OWN_COLUMNS:
        parse = _parse_own
    else:
        needed = ", ".join(sorted(OWN_COLUMNS))
        raise ProjectError(f"{path} is not a trace", hint=f"the first line names the columns, at least {needed}")
    jobs, problems = [], []
    for number, row in enumerate(rows, start=2):
        try:
            jobs.append(_check(parse(row)))
        except (ValueError, TypeError) as error:
            problems.append(f"{path}:{number}: {error}")
    if len({job.job_id for job in jobs}) != len(jobs):
        problems.append(f"{path}:1: a job_id stands twice")
    if problems:
        raise ProjectError(f"{path} has {len(problems)} broken lines", items=tuple(problems))
    return tuple(sorted(jobs, key=lambda job: (job.submitted_us, job.job_id)))


def _parse_muri(row: Mapping[str, str]) -> Job:
    return Job(
        job_id=row["job_id"].rjust(8, "0"),
        submitted_us=int(row["submit_time"]) * 1_000,
        units=int(row["num_gpu"]) * 1_000,
        duration_us=int(row["duration"]) * 1_000,
        features={"model_name": row.get("model_name", ""), "batch_size": row.get("batch_size", "")},
    )


def _parse_own(row: Mapping[str, str]) -> Job:
    return Job(
        job_id=row["job_id"],
        submitted_us=round(float(row["submit_s"]) * SECOND_US),
        units=to_milli(float(row["accelerators"])),
        duration_us=round(float(row["duration_s"]) * SECOND_US),
        priority=int(row.get("priority") or 500),
        budget=row.get("budget") or "trace",
        kind=row.get("kind") or "gpu",
        minimum_units=to_milli(float(row.get("minimum_accelerators") or 0)),
        step_units=to_milli(float(row.get("step_accelerators") or 0)),
        features={"model_name": row.get("model_name") or "", "batch_size": row.get("batch_size") or ""},
    )


def _check(job: Job) -> Job:
    if job.units <= 0:
        raise ValueError(f"job {job.job_id} asks for no accelerator")
    if job.duration_us < 0 or job.submitted_us < 0:
        raise ValueError(f"job {job.job_id} has a negative time")
    return job
