"""Budget files: units for people, and every problem of every file at once."""

from pathlib import Path

import pytest

from mlops.budgets.spec import find_oversubscriptions, load_budgets, parse_percent, parse_priority
from mlops.budgets.tree import PRIORITIES, BudgetNode, RateCard, find_period_end, find_period_start
from mlops.clock import DAY_US, SECOND_US
from mlops.errors import ProjectError

ROOT = Path(__file__).resolve().parents[3]
RATES = "version: 1\nrates:\n  - from: 2026-01-01\n    prices: {cpu: 0.05 USD, h100: 3.20 USD}\n"
COMPANY = "version: 1\ncap: 2000 USD\nperiod: month\nthresholds: {50%: warn}\nquotas:\n  h100: {nominal: 8}\n"


def write(folder: Path, **files: str) -> Path:
    for name, text in {"rates": RATES, "company": COMPANY, **files}.items():
        (folder / f"{name.replace('_', '-')}.yaml").write_text(text)
    return folder


def problems(folder: Path) -> str:
    with pytest.raises(ProjectError) as caught:
        load_budgets(folder)
    return "\n".join(caught.value.items)


def test_the_files_of_the_reference_project_load():
    tree = load_budgets(ROOT / "budgets")
    assert [node.name for node in tree.path("research")] == ["research", "company"]
    assert find_oversubscriptions(tree) == ()


def test_values_survive_their_json(tmp_path):
    tree = load_budgets(write(tmp_path))
    assert [BudgetNode.from_json(node.to_json()) for node in tree.nodes] == list(tree.nodes)
    assert RateCard.from_json(tree.rates.to_json()) == tree.rates


def test_all_problems_of_all_files_are_reported_with_file_line_and_field(tmp_path):
    write(
        tmp_path,
        a="version: 1\nparent: b\ncap: lots\n",
        b="version: 1\nparent: nobody\nquotas:\n  abacus: {nominal: 1}\n",
        c="version: 1\nparent: company\ncap: -5 USD\nspend: 3\n",
        rates=RATES.replace("0.05 USD", "cheap"),
    )
    found = problems(tmp_path)
    for part in (
        "a.yaml:3: cap",
        "b.yaml:2: parent: unknown budget 'nobody'",
        "c.yaml:3: cap",
        "c.yaml:4: spend: unknown",
    ):
        assert part in found
    assert "rates.yaml" in found


BROKEN = {
    "a ring of parents": (
        {"a": "version: 1\nparent: b\n", "b": "version: 1\nparent: a\n"}, "a.yaml:2: parent: is below itself: a > b",
    ),
    "a kind without a price": (
        {"a": "version: 1\nquotas:\n  abacus: {nominal: 1}\n"}, "a.yaml:3: quotas.abacus: unknown accelerator kind",
    ),
    "thresholds without a cap": ({"a": "version: 1\nthresholds: {50%: warn}\n"}, "there is no cap"),
    "a threshold above the cap": ({"a": "version: 1\ncap: 1 USD\nthresholds: {120%: warn}\n"}, "not a part of the cap"),
    "a signed budget without keys": ({"a": "version: 1\nsigned: true\nspenders: [ann]\n"}, "missing: ann"),
    "a negative quota": ({"a": "version: 1\nquotas: {cpu: {nominal: -1}}\n"}, "quotas.cpu.nominal"),
    "an absurd quota": ({"a": "version: 1\nquotas: {cpu: {nominal: 1.0e+12}}\n"}, "quotas.cpu.nominal"),
    "prices that go back in time": (
        {"rates": RATES + "  - from: 2025-01-01\n    prices: {cpu: 1 USD}\n"}, "must grow from entry to entry",
    ),
    "not YAML": ({"a": "version: [1\n"}, "a.yaml:"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken(tmp_path, case):
    files, expected = BROKEN[case]
    assert expected in problems(write(tmp_path, **files))


def test_children_that_together_exceed_a_parent_are_allowed_and_explained(tmp_path):
    child = "version: 1\nparent: company\ncap: 1500 USD\nquotas: {h100: {nominal: 6}}\n"
    notes = find_oversubscriptions(load_budgets(write(tmp_path, a=child, b=child)))
    assert len(notes) == 2
    assert "3000.00 USD" in notes[0] and "12" in notes[1]


def test_no_budget_at_all_is_a_problem(tmp_path):
    (tmp_path / "rates.yaml").write_text(RATES)
    assert "holds no budget" in problems(tmp_path)


@pytest.mark.parametrize("text", ["0%", "101%", "half", 50, "1e1%"])
def test_not_a_percentage(text):
    with pytest.raises(ValueError, match="not a part"):
        parse_percent(text)


def test_priorities_are_classes_or_numbers():
    assert parse_priority("high") == PRIORITIES["high"]
    assert parse_priority(7) == 7
    for wrong in ("highest", -1, 1001, True, 1.5):
        with pytest.raises(ValueError, match="not a priority"):
            parse_priority(wrong)


def test_periods_are_calendar_periods_in_utc():
    thursday = 1_795_651_200 * SECOND_US + 5  # 2026-11-26 00:00:00 UTC
    assert find_period_start("day", at_us=thursday) == thursday - 5
    assert find_period_start("week", at_us=thursday) == thursday - 5 - 3 * DAY_US
    assert find_period_start("month", at_us=thursday) == thursday - 5 - 25 * DAY_US
    assert find_period_start("quarter", at_us=thursday) == thursday - 5 - (25 + 31) * DAY_US
    assert find_period_start("once", at_us=thursday) == 0
    assert find_period_end("month", at_us=thursday) == thursday - 5 + 5 * DAY_US
    assert find_period_end("once", at_us=thursday) is None
