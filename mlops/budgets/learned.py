"""Durations learned while a trace runs, from submit time, size and the jobs seen so far; no hint, no look ahead.

Jobs that are submitted one after another with the same size tend to be one sweep: its neighbours in order of submission
tell most about a job, all earlier ones of its size the rest. A neighbour that still runs says only that it is longer
than it has run: its weight goes to what is longer (Efron 1967, redistribution to the right, which gives the estimate of
Kaplan and Meier 1958), and to twice what it has run where nothing is. From this sample the prediction is the Gittins
index (Gittins 1979; Scully et al. 2020): the least expected work per completion among all ways of giving the job some
more time. Short hopes are tried first, and what has overrun them falls back, as in a multi-level queue, but with levels
learned from the jobs.
Leaves to others: the truth (`simulate`).
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass

from mlops.budgets.prediction import UNKNOWN_US, grow
from mlops.budgets.trace import Job


@dataclass
class _Seen:
    """What has been seen of one job."""

    job: Job
    position: int
    """Among the jobs of its size, in order of submission."""
    ran_us: int = 0
    running_since_us: int | None = None
    total_us: int | None = None
    told_at_us: int = -1
    """Run time at its last prediction."""
    told_us: int = 0
    until_us: int = 0
    """Run time up to which that prediction stands: the stretch that the index was found for."""


class Learned:
    """Predicts the time left from similar jobs.

    Args:
        reach: Neighbours on each side that are looked at.
        prior_weight: Weight of all finished jobs of the size together; a neighbour at distance d weighs d**-0.5.
        shortest_us: No stretch is shorter than this, nor than what has run before.
    """

    def __init__(self, *, reach: int = 16, prior_weight: float = 1.0, shortest_us: int = 60_000_000) -> None:
        self._reach = reach
        self._prior_weight = prior_weight
        self._shortest_us = shortest_us
        self._seen: dict[str, _Seen] = {}
        self._order: dict[int, list[_Seen]] = {}
        self._finished: dict[int, list[int]] = {}
        self._running: dict[str, _Seen] = {}
        self._stale: set[str] = set()
        self._now_us = 0

    def submit(self, job: Job) -> None:
        """A job has arrived."""
        peers = self._order.setdefault(job.units, [])
        self._seen[job.job_id] = _Seen(job, len(peers))
        peers.append(self._seen[job.job_id])

    def start(self, job: Job, *, ran_us: int, now_us: int) -> None:
        """It begins to run."""
        seen = self._seen[job.job_id]
        seen.ran_us, seen.running_since_us = ran_us, now_us
        self._running[job.job_id] = seen

    def pause(self, job: Job, *, ran_us: int) -> None:
        """It was stopped."""
        seen = self._seen[job.job_id]
        seen.ran_us, seen.running_since_us = ran_us, None
        self._running.pop(job.job_id, None)

    def finish(self, job: Job, *, now_us: int) -> None:
        """It has ended: now its duration is known."""
        seen = self._seen[job.job_id]
        seen.ran_us = self._ran(seen, now_us)
        seen.total_us, seen.running_since_us = seen.ran_us, None
        self._running.pop(job.job_id, None)
        insort(self._finished.setdefault(job.units, []), seen.total_us)
        for each in self._neighbours(seen):
            if each.running_since_us is None and each.total_us is None:
                each.told_at_us = -1
                self._stale.add(each.job.job_id)

    def list_stale(self, now_us: int) -> Iterable[str]:
        """Waiting neighbours of what ended, and what has run through its stretch."""
        self._now_us = now_us
        for job_id, seen in self._running.items():
            if self._ran(seen, now_us) >= seen.until_us:
                self._stale.add(job_id)
        stale, self._stale = self._stale, set()
        return sorted(stale)

    def predict(self, job: Job, *, ran_us: int) -> int:
        """The Gittins index as a time: microseconds of work per expected completion."""
        seen = self._seen[job.job_id]
        if seen.told_at_us >= 0 and ran_us < seen.until_us:
            return seen.told_us  # the index stands still over its stretch, or equal jobs would take turns for ever
        self._tell(seen, ran_us=ran_us)
        return seen.told_us

    def _tell(self, seen: _Seen, *, ran_us: int) -> None:
        sample = [(total, weight) for total, weight in self._sample(seen) if total > ran_us]
        if sample:
            index, stretch_us = find_gittins_time([(total - ran_us, weight) for total, weight in sample])
        else:
            index = stretch_us = grow(UNKNOWN_US, ran_us=ran_us) - ran_us
        seen.told_at_us, seen.told_us = ran_us, round(index)
        seen.until_us = ran_us + max(stretch_us, ran_us, self._shortest_us)

    def _sample(self, seen: _Seen) -> list[tuple[int, float]]:
        """Durations of similar jobs with weights."""
        sample: list[tuple[int, float, bool]] = []
        for each in self._neighbours(seen):
            weight = 1.0 / math.sqrt(abs(each.position - seen.position))
            if each.total_us is not None:
                sample.append((each.total_us, weight, True))
            else:
                ran_us = self._ran(each, self._now_us)
                if ran_us > 0:
                    sample.append((ran_us, weight, False))
        finished = self._finished.get(seen.job.units, [])
        if finished:
            step = max(len(finished) // 32, 1)
            chosen = finished[step // 2 :: step]
            sample.extend((total, self._prior_weight / len(chosen), True) for total in chosen)
        return spread_unfinished(sample)

    def _neighbours(self, seen: _Seen) -> list[_Seen]:
        peers = self._order[seen.job.units]
        first = max(seen.position - self._reach, 0)
        return [each for each in peers[first : seen.position + self._reach + 1] if each is not seen]

    def _ran(self, seen: _Seen, now_us: int) -> int:
        since = seen.running_since_us
        return seen.ran_us + (max(now_us - since, 0) if since is not None else 0)


def spread_unfinished(sample: list[tuple[int, float, bool]]) -> list[tuple[int, float]]:
    """Times with weights, in which the unfinished ones have given their weight to longer times (Efron 1967).

    Args:
        sample: Time (of unfinished ones: so far), weight above 0, and whether it is finished.

    Returns:
        Finished times with their weights grown; an unfinished one that nothing outlasts stands at twice its time. The
        weights add up to what they added up to before.
    """
    ordered = sorted(sample, key=lambda each: (each[0], not each[2]))
    left, growth = sum(weight for _, weight, _ in ordered), 1.0
    spread = []
    for number, (time_us, weight, is_finished) in enumerate(ordered, start=1):
        if is_finished:
            spread.append((time_us, weight * growth))
        elif number < len(ordered):
            growth *= left / (left - weight)
        else:
            spread.append((2 * time_us, weight * growth))
        left -= weight
    return spread


def find_gittins_time(sample: list[tuple[int, float]]) -> tuple[float, int]:
    """Least expected work per completion over all stretches of time.

    Args:
        sample: Time left and weight; not empty, times above 0.

    Returns:
        min over t of E[min(X, t)] / P(X <= t), and that t; for the largest t it is the mean.
    """
    ordered = sorted(sample)
    total = sum(weight for _, weight in ordered)
    best, stretch = float("inf"), 0
    done_weight = done_work = 0.0
    for left, weight in ordered:
        done_weight += weight
        done_work += left * weight
        index = (done_work + left * (total - done_weight)) / done_weight
        if index < best:
            best, stretch = index, left
    return max(best, 1.0), stretch
