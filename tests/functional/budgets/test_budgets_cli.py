"""`mlops budget` in a small project."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlops.cli.budget import budget
from mlops.errors import ProjectError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "datasets.dvc").write_text("outs: []\n")
    folder = tmp_path / "budgets"
    folder.mkdir()
    (folder / "company.yaml").write_text(
        "version: 1\ncap: 100 USD\nthresholds: {50%: warn}\nquotas: {h100: {nominal: 8}}\n"
    )
    (folder / "rates.yaml").write_text("version: 1\nrates:\n  - from: 2020-01-01\n    prices: {h100: 3.60 USD}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLOPS_LEDGER", raising=False)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(budget, list(arguments), catch_exceptions=False)


def test_show_prints_the_tree_at_80_columns_and_as_json(project):
    text = run("show").output
    assert "company" in text and "100.00/month" in text
    assert max(len(line) for line in text.splitlines()) <= 80
    (line,) = json.loads(run("show", "--json").output)["budgets"]
    assert (line["name"], line["cap_micro_usd"], line["quotas"][0]["nominal"]) == ("company", 100_000_000, 8.0)


def test_set_is_audited_and_a_dry_run_changes_nothing(project):
    assert "dry run" in run("set", "company", "--cap", "50 USD", "--why", "test", "--dry-run").output
    assert json.loads(run("show", "--json").output)["budgets"][0]["cap_micro_usd"] == 100_000_000
    run("set", "company", "--cap", "50 USD", "--quota", "4xh100", "--who", "ann", "--why", "less money")
    shown = json.loads(run("show", "company", "--json").output)
    assert shown["budgets"][0]["cap_micro_usd"] == 50_000_000
    assert (shown["history"][-1]["who"], shown["history"][-1]["why"]) == ("ann", "less money")


def test_forecast_says_whether_the_budget_holds(project):
    arguments = ("forecast", "company", "--trials", "10", "--accelerators", "2xh100", "--hint", "30min")
    assert "budget:company has 100.00 USD left: holds" in run(*arguments).output
    figures = json.loads(run(*arguments, "--json").output)["forecast"]
    assert figures["cost_p50"] < figures["cost_p90"]
    dear = run("forecast", "company", "--trials", "1000", "--accelerators", "2xh100", "--hint", "30min").output
    assert "does not hold" in dear


def test_simulate_prints_the_figures_and_writes_a_picture(project):
    (project / "trace.csv").write_text("job_id,submit_s,accelerators,duration_s\na,0,1,60\nb,0,8,60\nc,5,4,600\n")
    figures = json.loads(run("simulate", "trace.csv", "--cluster", "2x8", "--json", "--plot", "use.svg").output)
    asked = {"average_completion_s", "p99_completion_s", "makespan_s", "utilisation", "preemptions"}
    assert asked <= figures.keys()
    assert (project / "use.svg").read_text().lstrip().startswith("<?xml")
    for durations in ("learned", "noisy:0.5"):
        assert "average_completion_s" in run("simulate", "trace.csv", "--durations", durations).output


@pytest.mark.parametrize(
    "arguments",
    [
        ("simulate", "trace.csv", "--cluster", "8"),
        ("simulate", "trace.csv", "--durations", "guessed"),
        ("simulate", "trace.csv", "--plot", "use.bmp"),
        ("simulate", "trace.csv", "--plot", "nowhere/use.svg"),
        ("set", "company", "--why", "nothing"),
        ("set", "company", "--cap", "much", "--why", "x"),
    ],
)
def test_wrong_arguments_are_usage_errors(project, arguments):
    (project / "trace.csv").write_text("job_id,submit_s,accelerators,duration_s\na,0,1,60\n")
    assert run(*arguments).exit_code == 2


def test_an_unknown_budget_names_the_known_ones(project):
    with pytest.raises(ProjectError) as caught:
        run("show", "nobody")
    assert "company" in caught.value.hint
