"""How long a group will still run: exact (a simulation's upper bound), noisy, or learned from what was seen so far.

Live, a prediction is the hint, else the mean of the sweep's finished trials, and it grows when a group overruns it
(`predict_trial`). `Learned` is for jobs without hints. Leaves to others: using predictions (`decide`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import Protocol

from mlops.budgets.trace import Job
from mlops.clock import SECOND_US

UNKNOWN_US = 3_600 * SECOND_US
"""Where nothing at all is known."""


class Predictor(Protocol):
    """What the rule believes about durations; told what happens, and nothing else."""

    def submit(self, job: Job) -> None:
        """A job has arrived."""
        ...

    def start(self, job: Job, *, ran_us: int, now_us: int) -> None:
        """It begins to run at `now_us`, after having run for `ran_us` before."""
        ...

    def pause(self, job: Job, *, ran_us: int) -> None:
        """It was stopped."""
        ...

    def finish(self, job: Job, *, now_us: int) -> None:
        """It has ended."""
        ...

    def predict(self, job: Job, *, ran_us: int) -> int:
        """Run time that is left, microseconds."""
        ...

    def list_stale(self, now_us: int) -> Iterable[str]:
        """Jobs whose prediction should be asked for again."""
        ...


class _Unlearning:
    """A predictor that ignores what happens."""

    def submit(self, job: Job) -> None:
        """Nothing to learn."""

    def start(self, job: Job, *, ran_us: int, now_us: int) -> None:
        """Nothing to learn."""

    def pause(self, job: Job, *, ran_us: int) -> None:
        """Nothing to learn."""

    def finish(self, job: Job, *, now_us: int) -> None:
        """Nothing to learn."""

    def list_stale(self, now_us: int) -> Iterable[str]:
        """Nothing changes."""
        return ()


class Exact(_Unlearning):
    """Knows the durations."""

    def predict(self, job: Job, *, ran_us: int) -> int:
        """The truth."""
        return job.duration_us - ran_us


class Noisy(_Unlearning):
    """The truth times a lognormal factor, drawn once per job."""

    def __init__(self, sigma: float, *, seed: int = 0) -> None:
        self._sigma = sigma
        self._seed = seed

    def predict(self, job: Job, *, ran_us: int) -> int:
        """A wrong duration, minus what has run; doubled while it is overrun."""
        factor = math.exp(random.Random(f"{self._seed}:{job.job_id}").gauss(0.0, self._sigma))  # noqa: S311 - noise
        return grow(round(job.duration_us * factor), ran_us=ran_us) - ran_us


def grow(predicted_us: int, *, ran_us: int) -> int:
    """A total that is longer than what has run already: doubled until it is."""
    predicted_us = max(predicted_us, SECOND_US)
    while predicted_us <= ran_us:
        predicted_us *= 2
    return predicted_us


def predict_trial(*, hint_us: int | None, finished_us: Sequence[int], ran_us: int) -> int:
    """Time a trial still runs: from the mean of the sweep's finished trials, else the hint, grown on overrun."""
    total_us = sum(finished_us) // len(finished_us) if finished_us else (hint_us or UNKNOWN_US)
    return grow(total_us, ran_us=ran_us) - ran_us
