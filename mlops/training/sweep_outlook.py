"""When a running sweep will end, by what its trials took until now.

Leaves to others: forecasts before the start (mlops/training/cost), showing it (mlops/cli/sweep_live).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mlops.clock import SECOND_US
from mlops.training.sql_trials import RUNNING, AttemptRow, ReportRow, SweepRow, TrialRow


def expect_end_us(
    row: SweepRow,
    trials: Sequence[TrialRow],
    attempts: Sequence[AttemptRow],
    reports: Sequence[ReportRow],
    *,
    now_us: int,
) -> int | None:
    """Ledger time at which the last trial will have ended; None while no epoch was reported.

    An epoch takes what the reported ones took on average, a trial to come has as many as ended ones had (fewer than the
    spec says where trials are pruned), and as many groups work at once as now.
    """
    reported: dict[tuple[int, int], list[int]] = {}
    for report in reports:
        reported.setdefault((report.number, report.attempt), []).append(report.at_us)
    begun = {(attempt.number, attempt.attempt): attempt.started_us for attempt in attempts}
    done = sum(len(times) for key, times in reported.items() if key in begun)
    if not done:
        return None
    epoch_us = sum(max(times) - begun[key] for key, times in reported.items() if key in begun) / done
    epochs = Counter(report.number for report in reports)
    planned, total = int(row.spec["epochs"]), int(row.spec["trials"])
    ended = [epochs[trial.number] for trial in trials if trial.state != RUNNING]
    each = sum(ended) / len(ended) if ended else float(planned)
    open_us = sum((planned - epochs[trial.number]) * epoch_us for trial in trials if trial.state == RUNNING)
    running = [attempt for attempt in attempts if attempt.ended_us is None]
    for attempt in running:  # the epoch that runs has begun already
        since_us = max(reported.get((attempt.number, attempt.attempt), [attempt.started_us]))
        open_us -= min(epoch_us, now_us - since_us)
    left_us = max(0.0, open_us) + max(0, total - len(trials)) * each * epoch_us
    end_us = now_us + round(left_us / max(1, len(running)))
    deadline = row.spec.get("stop", {}).get("deadline")  # seconds
    if deadline is None:
        return end_us
    return max(now_us, min(end_us, row.started_us + round(deadline * SECOND_US)))
