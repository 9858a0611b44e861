"""Deadlines count calendar months; a retrain waits for its window unless ordered or due."""

from datetime import UTC, datetime

import pytest

from mlops.clock import DAY_US, SECOND_US
from mlops.deploy.erasure_rules import ErasureSpec, add_month_us
from mlops.erasure.batches import decide_timing
from mlops.erasure.sql_erasure import RetrainRow
from mlops.errors import ProjectError
from mlops.specs import parse_spec


def at(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND_US


MONTHS = {
    "the same day a month later": ("2026-11-27T08:00:00", "2026-12-27T08:00:00"),
    "over the new year": ("2026-12-05T00:00:00", "2027-01-05T00:00:00"),
    "the last day of a shorter month": ("2027-01-31T12:00:00", "2027-02-28T12:00:00"),
    "a leap day": ("2028-01-30T12:00:00", "2028-02-29T12:00:00"),
}


@pytest.mark.parametrize(("start", "end"), MONTHS.values(), ids=MONTHS)
def test_a_month_is_a_calendar_month(start, end):
    assert add_month_us(at(start) + 7) == at(end) + 7


NOW = at("2026-11-27T08:00:00")
LAST = [RetrainRow("batch-1", "p", "d", NOW - DAY_US // 2, "", None, "passed", 2)]
LATE = [RetrainRow("batch-1", "p", "d", NOW - 9 * DAY_US, "", NOW - DAY_US // 2, "passed", 2)]
TIMINGS = {
    "one that was killed counts when it ended": (LATE, "batch-2", None, "", (False, "")),
    "the first retrain starts": ([], "batch-1", None, "", (True, "")),
    "inside the window it waits": (LAST, "batch-2", NOW + 20 * DAY_US, "", (False, "")),
    "one that began goes on": (LAST, "batch-1", None, "", (True, "")),
    "a person may order it": (LAST, "batch-2", None, "why", (True, "ordered: why")),
    "a near deadline forces it": (LAST, "batch-2", NOW + DAY_US, "", (True, "deadline 2026-11-28T08:00:00Z")),
}


@pytest.mark.parametrize(("retrains", "batch", "due_us", "ordered", "expected"), TIMINGS.values(), ids=TIMINGS)
def test_when_a_retrain_may_start(retrains, batch, due_us, ordered, expected):
    rules = ErasureSpec(version=1)
    timing = decide_timing(rules, retrains=retrains, batch_id=batch, due_us=due_us, now_us=NOW, ordered=ordered)
    assert (timing.may_start, timing.forced) == expected


def test_after_the_window_it_starts():
    rules = parse_spec("version: 1\nwindow: 12h\n", ErasureSpec, source="rules")
    assert decide_timing(rules, retrains=LAST, batch_id="batch-2", due_us=None, now_us=NOW).may_start


def test_a_tenant_without_a_real_key_is_a_problem_of_the_file():
    with pytest.raises(ProjectError):
        parse_spec("version: 1\ntenants: {shop: {keys: [ed25519:x]}}\n", ErasureSpec, source="rules")


def test_no_rules_make_each_request_late_at_once():
    with pytest.raises(ProjectError, match="rules has 1 problem"):
        parse_spec("version: 1\ndeadline: 0d\n", ErasureSpec, source="rules")
