"""`mlops budget` in a small project."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlops.cli.budget import budget, render_cents
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
        ("set", "company", "--cap", "99999999999999 USD", "--why", "x"),
        ("set", "company", "--cap", "5 USD", "--why", " "),
        ("set", "company", "--quota", "8xh10", "--why", "x"),
        ("set", "company", "--quota", "1000001xh100", "--why", "x"),
        ("set", "company", "--from-file", "--cap", "5 USD", "--why", "x"),
        ("forecast", "company", "--trials", "5", "--accelerators", "1xh100", "--hint", "0s"),
    ],
)
def test_wrong_arguments_are_usage_errors(project, arguments):
    (project / "trace.csv").write_text("job_id,submit_s,accelerators,duration_s\na,0,1,60\n")
    assert run(*arguments).exit_code == 2


def test_an_unknown_budget_names_the_known_ones(project):
    with pytest.raises(ProjectError) as caught:
        run("show", "nobody")
    assert "company" in caught.value.hint


def test_before_a_change_its_consequences_are_said(project):
    (project / "budgets" / "team.yaml").write_text("version: 1\nparent: company\ncap: 60 USD\n")
    said = run("set", "team", "--cap", "160 USD", "--quota", "16xh100", "--why", "x", "--dry-run").output
    assert "team: cap 60.00 USD -> 160.00 USD per month" in said
    assert "team: quota of h100 0 -> 16" in said
    assert "the caps below company add up to 160.00 USD" in said and "quotas below company add up to 16" in said
    assert "spent or prepaid already" in run("set", "team", "--cap", "0 USD", "--why", "x", "--dry-run").output
    run("set", "team", "--cap", "160 USD", "--why", "x")
    assert "note: the caps below company add up" in run("show").output
    assert run("show", "team").output.splitlines()[1].startswith("team    160.00/month")


def test_a_file_that_is_older_than_the_ledger_is_named_and_can_be_applied(project):
    file = project / "budgets" / "company.yaml"
    before = file.read_text()
    assert "note:" not in run("show").output
    file.write_text(before.replace("100 USD", "900 USD"))
    run("show")
    file.write_text(before)  # as git does when a mistake is taken back
    shown = run("show").output
    assert "900.00/month" in shown and "set company --from-file" in shown
    assert "cap 900.00 USD -> 100.00 USD" in run("set", "company", "--from-file", "--why", "taken back").output
    assert "100.00/month" in run("show").output and "note:" not in run("show").output
    assert run("set", "company", "--from-file", "--why", "again").exit_code == 2


def test_a_rate_card_that_was_replaced_by_mistake_comes_back(project):
    file = project / "budgets" / "rates.yaml"
    before = file.read_text()
    run("show")
    file.write_text(before.replace("2020-01-01", "2999-01-01"))
    asked = ("forecast", "company", "--trials", "5", "--accelerators", "1xh100", "--hint", "1h")
    with pytest.raises(ProjectError, match="only from a later day on"):
        run(*asked)
    file.write_text(before)
    assert "rates: budgets/rates.yaml says something else" in run("show").output
    run("set", "rates", "--from-file", "--why", "a wrong year")
    assert run("set", "rates", "--from-file", "--why", "again").exit_code == 2
    assert "holds" in run(*asked).output
    assert "note:" not in run("show").output


def test_a_budget_whose_file_is_gone_is_said_to_hold_on(project):
    file = project / "budgets" / "team.yaml"
    file.write_text("version: 1\nparent: company\ncap: 60 USD\n")
    run("show")
    file.unlink()
    assert "team: it holds on without budgets/team.yaml" in run("show").output


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "only the names": ("job_id,submit_s,accelerators,duration_s\n", "holds no job"),
        "a word": ("job_id,submit_s,accelerators,duration_s\na,0,1,long\n", "duration_s: 'long' is not a number"),
        "a short line": ("job_id,submit_s,accelerators,duration_s\na,0,1\n", "duration_s is missing"),
    }.values(),
)
def test_a_trace_that_cannot_be_replayed_says_why(project, text, said):
    (project / "trace.csv").write_text(text)
    with pytest.raises(ProjectError) as caught:
        run("simulate", "trace.csv")
    assert said in " ".join((caught.value.message, *caught.value.items))


def test_a_little_that_was_spent_is_shown(project):
    assert (render_cents(1_784, "ROUND_CEILING"), render_cents(1_999_998_216, "ROUND_FLOOR")) == ("0.01", "1,999.99")
