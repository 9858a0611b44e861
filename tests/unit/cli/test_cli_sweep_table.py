"""A sweep in a terminal and in a log file."""

import io

import pytest

from mlops.cli import sweep_table
from mlops.cli.sweep_table import LiveTable, follow_sweep, render_live, render_progress, render_sweep
from mlops.training.sweep_view import SweepView, TimeUse, TrialLine


def trial(number, state, loss=None, **changes):
    metrics = {} if loss is None else {"loss": loss}
    fields = {
        "epoch": 1,
        "step": 0,
        "attempts": 1,
        "seconds": 2.0,
        "params": {"x": 0.5},
        "reason": "",
        "is_winner": False,
    }
    fields |= {"cost_micro_usd": 1_500, "group": "", "lease_ids": (), "mlflow_run_id": ""}
    return TrialLine(number=number, state=state, metrics=metrics, **{**fields, **changes})


def view(*trials, state="running", total=9, **changes):
    fields = {
        "sweep_id": "sweep-1", "product": "tiny", "state": state, "reason": "", "winner": None, "seconds": 12.0,
        "total": total, "epochs": 3, "objective": "loss", "is_minimized": True, "time_use": TimeUse(1, 1, 0),
        "cost_micro_usd": 2_500_000, "budget": "research", "left_micro_usd": 7_000_000, "ends_us": 1_000_000,
        "mlflow_run_id": "", "fixed": {}, "trains_members": False,
    }  # fmt: skip
    return SweepView(trials=trials, **{**fields, **changes})


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_state_epoch_metrics_cost_budget_and_end_are_shown():
    text = render_sweep(view(trial(3, "RUNNING", 0.25, step=120)))
    for shown in (
        "RUNNING",
        "1/3, step 120",
        "0.2500",
        "0.0015 USD",
        "2.50 USD",
        "research: 7.00 USD left",
        "ends about",
    ):
        assert shown in text


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"winner": 1}, "winner: trial 1, chosen on validation among 2 complete of 2 trials"),
        ({"trains_members": True}, "members of an ensemble by isolation, all joined into one model: none is a winner"),
    ],
)
def test_it_says_what_comes_of_the_trials(changes, shown):
    text = render_sweep(view(trial(0, "COMPLETE"), trial(1, "COMPLETE"), state="finished", **changes))
    assert shown in text
    assert text.count("winner") == 1


@pytest.mark.parametrize(("is_minimized", "best"), [(True, 1), (False, 2)])
def test_a_small_screen_shows_what_runs_and_then_the_best(is_minimized, best):
    trials = [*(trial(n, "COMPLETE", n / 10) for n in (2, 1)), *(trial(n, "PRUNED") for n in range(4, 40))]
    lines = render_live(view(*trials, trial(3, "RUNNING"), is_minimized=is_minimized), width=60, height=12)
    assert len(lines) < 12
    assert max(map(len, lines)) < 60
    first = next(place for place, line in enumerate(lines) if line.startswith("3 "))
    assert lines[first + 1].startswith(f"{best} ")
    assert lines[-1].startswith("and ")
    assert lines[-1].endswith("more")


def test_one_line_says_how_far_the_whole_sweep_is():
    line = render_progress(view(trial(0, "COMPLETE"), trial(1, "RUNNING"), left_micro_usd=None, ends_us=None))
    assert line == "1 of 9 trials ended, 1 running; cost until now 2.50 USD; budget research: no cap"


def follow(*views, screen):
    left = list(views)
    follow_sweep(lambda: left.pop(0), sleep=lambda seconds: None, screen=screen)
    return screen.getvalue()


def test_a_log_file_gets_a_line_for_each_change_and_no_control_character():
    one, two = view(trial(0, "RUNNING")), view(trial(0, "COMPLETE"))
    text = follow(one, one, one, two, view(state="finished"), screen=io.StringIO())
    assert text.splitlines() == [render_progress(one), render_progress(two)]
    assert "\x1b" not in text


def test_a_terminal_gets_one_table_that_is_gone_at_the_end():
    one = view(trial(0, "RUNNING"))
    text = follow(one, one, view(state="finished"), screen=Screen())
    drawn = len(render_live(one, width=80, height=24))
    assert text.count(f"\x1b[{drawn}F") == 2
    assert text.endswith("\x1b[J")


def test_a_narrower_window_folds_what_was_drawn_and_all_of_it_is_taken_away(monkeypatch):
    screen, one = Screen(), view(trial(0, "RUNNING"))
    drawing = sweep_table.Drawing(screen)
    monkeypatch.setenv("COLUMNS", "100")
    drawing.draw(one)
    monkeypatch.setenv("COLUMNS", "30")
    drawing.clear()
    folded = sum(max(1, -(-len(line) // 30)) for line in render_live(one, width=100, height=24))
    assert screen.getvalue().endswith(f"\x1b[{folded}F\x1b[J")


def test_what_all_trials_share_is_said_once():
    text = render_sweep(view(trial(0, "RUNNING", params={"x": 0.5, "batch": 4}), fixed={"batch": 4}))
    assert text.count("batch=4") == 1
    assert "every trial has batch=4" in text


def test_messages_of_a_sweep_are_plain_lines_in_a_log_and_stand_below_the_table_in_a_terminal(capsys, monkeypatch):
    with LiveTable(lambda: view(), screen=io.StringIO()) as table:
        table.say("trial 1 complete")
    assert capsys.readouterr().out == "trial 1 complete\n"
    assert render_live(view(), width=80, height=24, messages=("trial 1 complete",))[-1] == "trial 1 complete"


def test_what_was_said_last_stays_readable_after_an_error_in_a_terminal(capsys):
    with pytest.raises(ValueError, match="broken"), LiveTable(lambda: view(), screen=Screen()) as table:
        table.say("trial 1 lost")
        raise ValueError("broken")
    assert "trial 1 lost" in capsys.readouterr().out
    assert sweep_table.FOLLOW_SECONDS > 0
