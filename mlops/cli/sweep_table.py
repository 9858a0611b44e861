"""A sweep as people watch it: in a terminal one table that is drawn over itself, in a log file lines that only grow.

Leaves to others: what stands in it (mlops/training/sweep_view), who asks for it (mlops/cli/sweep).
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

import click

from mlops.cli.rendering import render_table
from mlops.errors import MlopsError

if TYPE_CHECKING:
    from mlops.training.sweep_view import SweepView, TrialLine

FOLLOW_SECONDS = 2.0
LOG_SECONDS = 60.0
"""In a log file, a line about the whole sweep at most so often."""
_SHOWN_LINES = 6
"""Last messages below a live table."""
_MICRO = 1_000_000


def render_sweep(view: SweepView) -> str:
    """A sweep as plain text, all trials in their order; sane in a log file."""
    return "\n".join([*_head(view), "", *_table(view, view.trials)]) if view.trials else "\n".join(_head(view))


def render_live(view: SweepView, *, width: int, height: int, messages: tuple[str, ...] = ()) -> list[str]:
    """The same for a screen of so many columns and lines: trials that run, then the best, then what ended last."""
    head, shown = _head(view), messages[-_SHOWN_LINES:]
    room = max(1, height - len(head) - len(shown) - 5)
    trials = sorted(view.trials, key=lambda trial: _rank(view, trial))
    table = _table(view, trials[:room]) if trials else []
    left = [f"and {len(trials) - room} more"] if len(trials) > room else []
    lines = [*head, "", *table, *left, *(["", *shown] if shown else [])]
    return [line[: width - 1] for line in lines]


def render_progress(view: SweepView) -> str:
    """The whole sweep in one line."""
    running = sum(trial.state == "RUNNING" for trial in view.trials)
    return f"{view.done} of {view.total} trials ended, {running} running; {_money(view)}{_end(view)}"


class LiveTable:
    """Shows a sweep that this process drives: `say` takes its messages, the table is drawn beside it by a thread.

    Where standard output is no terminal, or with `is_quiet`, messages are plain lines and a line about the whole sweep
    follows now and then.
    """

    def __init__(self, look: Callable[[], SweepView], *, is_quiet: bool = False, screen: TextIO | None = None) -> None:
        self._look, self._is_quiet = look, is_quiet
        self._screen = screen or sys.stdout
        self._is_live = self._screen.isatty() and not is_quiet
        self._messages: deque[str] = deque(maxlen=_SHOWN_LINES)
        self._drawing = Drawing(self._screen)
        self._ended = threading.Event()
        self._logged = time.monotonic()
        self._thread = threading.Thread(target=self._draw_always, name="sweep table", daemon=True)

    def say(self, line: str) -> None:
        """One message of the sweep."""
        if self._is_live:
            self._messages.append(line)
            return
        click.echo(line, err=self._is_quiet)
        if time.monotonic() - self._logged > LOG_SECONDS:
            self._logged = time.monotonic()
            with suppress(MlopsError):  # a ledger that cannot be read now is the driver's matter
                click.echo(render_progress(self._look()), err=self._is_quiet)

    def __enter__(self) -> LiveTable:
        if self._is_live:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_live:
            self._ended.set()
            self._thread.join()
            self._drawing.clear()
            for line in self._messages if kind is not None else ():
                click.echo(line)

    def _draw_always(self) -> None:
        while not self._ended.wait(FOLLOW_SECONDS):
            with suppress(MlopsError):  # not begun yet, or the ledger cannot be read now
                self._drawing.draw(self._look(), messages=tuple(self._messages))


class Drawing:
    """A table that is drawn over what it drew before."""

    def __init__(self, screen: TextIO) -> None:
        self._screen = screen
        self._drawn: list[str] = []

    def draw(self, view: SweepView, *, messages: tuple[str, ...] = ()) -> None:
        """Replace the last one."""
        size = shutil.get_terminal_size()
        lines = render_live(view, width=size.columns, height=size.lines, messages=messages)
        # Over the old lines, in one write: a screen that is emptied first flickers.
        self._screen.write(self._go_up(size.columns) + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        self._screen.flush()
        self._drawn = lines

    def clear(self) -> None:
        """Leave nothing of it on the screen."""
        if self._drawn:
            self._screen.write(self._go_up(shutil.get_terminal_size().columns) + "\x1b[J")
            self._screen.flush()
        self._drawn = []

    def _go_up(self, columns: int) -> str:
        """To the first line of the last one; a window that was made narrower has folded its lines."""
        height = sum(max(1, -(-len(line) // columns)) for line in self._drawn)
        return f"\x1b[{height}F" if height else ""


def follow_sweep(
    look: Callable[[], SweepView], *, sleep: Callable[[float], None], screen: TextIO | None = None
) -> None:
    """Watch until the sweep does not run any more: a live table in a terminal, else a line for each change."""
    screen = screen or sys.stdout
    drawing, told = Drawing(screen), ""
    while (view := look()).state == "running":
        if screen.isatty():
            drawing.draw(view)
        else:
            counts = f"{view.done} {sum(trial.epoch for trial in view.trials)}"
            if counts != told:
                screen.write(f"{render_progress(view)}\n")
                screen.flush()
            told = counts
        sleep(FOLLOW_SECONDS)
    drawing.clear()


def _head(view: SweepView) -> list[str]:
    use = view.time_use
    lines = [
        f"{view.sweep_id}  {view.product}  {view.state}{': ' + view.reason if view.reason else ''}",
        f"{view.done} of {view.total} trials ended, {view.seconds:.0f} s{_end(view)}",
        f"accelerator-seconds: paid {use.paid:.1f}, busy {use.busy:.1f}, waiting for data {use.data_wait:.1f}",
        _money(view),
        *([f"every trial has {_render_params(view.fixed)}"] if view.fixed else []),
    ]
    if view.trains_members:
        lines.append("trials are members of an ensemble by isolation, all joined into one model: none is a winner")
    elif view.winner is not None:
        complete = sum(trial.state == "COMPLETE" for trial in view.trials)
        among = f"{complete} complete of {len(view.trials)} trials"
        lines.append(f"winner: trial {view.winner}, chosen on validation among {among}")
    return lines


def _money(view: SweepView) -> str:
    left = "no cap" if view.left_micro_usd is None else f"{_usd(view.left_micro_usd)} left"
    return f"cost until now {_usd(view.cost_micro_usd)}; budget {view.budget}: {left}"


def _end(view: SweepView) -> str:
    if view.ends_us is None:
        return ""
    return f"; ends about {time.strftime('%H:%M:%S', time.localtime(view.ends_us / _MICRO))}"


def _table(view: SweepView, trials: tuple[TrialLine, ...] | list[TrialLine]) -> list[str]:
    names = sorted({name for trial in view.trials for name in trial.metrics})
    names.sort(key=lambda name: name != view.objective)
    rows = [
        (
            f"{trial.number}{' *' if trial.is_winner else ''}",
            trial.state,
            f"{trial.epoch}/{view.epochs}" + (f", step {trial.step}" if trial.step else ""),
            f"{trial.seconds:.1f} s",
            _usd(trial.cost_micro_usd),
            *(f"{trial.metrics[name]:.4f}" if name in trial.metrics else "" for name in names),
            trial.reason or _render_params({name: it for name, it in trial.params.items() if name not in view.fixed}),
        )
        for trial in trials
    ]
    return render_table(("trial", "state", "epoch", "time", "cost", *names, "parameters"), rows).splitlines()


def _render_params(params: Mapping[str, object]) -> str:
    return " ".join(f"{name}={_short(value)}" for name, value in params.items())


def _rank(view: SweepView, trial: TrialLine) -> tuple[int, float, int]:
    order = {"RUNNING": 0, "WAITING": 1, "COMPLETE": 2}
    value = trial.metrics.get(view.objective, float("inf"))
    place, is_placed = order.get(trial.state, 3), trial.state == "COMPLETE"
    number = trial.number if trial.state in ("RUNNING", "WAITING") else -trial.number
    return place, (value if view.is_minimized else -value) if is_placed else 0.0, number


def _usd(micro: int) -> str:
    """Short enough for a column; `--json` has every micro-USD."""
    return f"{micro / _MICRO:.2f} USD" if abs(micro) >= _MICRO else f"{micro / _MICRO:.4f} USD"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
