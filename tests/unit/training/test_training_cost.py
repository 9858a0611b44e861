"""What a sweep costs, before it starts."""

import pytest

from mlops.places import Places
from mlops.training.cost import describe_cost


@pytest.fixture
def places(tmp_path):
    (tmp_path / "budgets").mkdir()
    (tmp_path / "budgets/research.yaml").write_text("version: 1\ncap: 10 USD\nperiod: once\n")
    (tmp_path / "budgets/rates.yaml").write_text(
        "version: 1\nrates:\n  - from: 2020-01-01\n    prices: {cpu: 3.6 USD}\n"
    )
    return Places(tmp_path)


@pytest.mark.parametrize(
    ("hint_seconds", "expected"),
    [
        (None, "no forecast: there is nothing to forecast from"),
        (600.0, "; the budgets hold it"),
        (36_000.0, "; more than is left in research"),
    ],
)
def test_cost_is_told_with_whether_the_budgets_hold_it(stage, places, hint_seconds, expected):
    text = describe_cost(
        places, stage.ledger, stage.spec(trials=4), clock=stage.clock, ids=stage.ids, hint_seconds=hint_seconds
    )
    assert text.endswith(expected) or text == expected


def test_trials_that_ended_count_more_than_a_hint(stage, places):
    stage.run(stage.spec(trials=4), stage.crew(seconds=lambda trial, epoch: 100.0))
    text = describe_cost(
        places, stage.ledger, stage.spec(trials=4), clock=stage.clock, ids=stage.ids, hint_seconds=36_000.0
    )
    assert "4 finished trials" in text and text.endswith("the budgets hold it")
