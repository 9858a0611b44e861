"""`mlops doctor`: say what is missing or broken. Leaves to others: finding it (mlops/project/doctor.py)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlops.cli.rendering import emit_json, render_table
from mlops.errors import EXIT_REFUSED

if TYPE_CHECKING:
    from mlops.project.diagnosis import Diagnosis, Examination

_MARKS = {"fine": "ok   ", "note": "note ", "broken": "BROKEN"}


@click.command()
@click.option("--processes", is_flag=True, help="List the processes that work in this project, and what they hold.")
@click.option("--quiet", is_flag=True, help="Leave out what is fine.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
def doctor(*, processes: bool, quiet: bool, is_json: bool) -> None:
    """Say what is missing or broken here, and how to mend it; exit code 1 when something is broken."""
    from mlops.clock import SystemClock
    from mlops.project.doctor import examine  # every room's loaders: 0.5 s

    if processes:
        _print_processes(is_json=is_json)
        return
    found = examine(Path.cwd(), clock=SystemClock())
    if is_json:
        emit_json(found.to_json())
    else:
        _print(found, quiet=quiet)
    if not found.is_fine:
        raise click.exceptions.Exit(EXIT_REFUSED)


def _print(found: Examination, *, quiet: bool) -> None:
    from mlops.project.diagnosis import count_problems

    for title, part in (("machine", found.machine), ("project", found.project)):
        shown = [one for one in part if not (quiet and one.status == "fine")]
        if shown:
            click.echo(f"{title}:")
        for one in shown:
            _print_one(one)
    count = count_problems((*found.machine, *found.project))
    click.echo("everything a release needs is here" if found.is_fine else f"{count} problem{'s' * (count > 1)} to mend")


def _print_one(one: Diagnosis) -> None:
    text = f": {one.text}" if one.text else ""
    click.echo(f"  {_MARKS[one.status]:6} {one.subject}{text}")
    for item in one.items:
        click.echo(f"           {item}")
    if one.hint and one.status != "fine":
        click.echo(f"           -> {one.hint}")


def _print_processes(*, is_json: bool) -> None:
    from mlops.project.opening import open_project
    from mlops.project.processes import (  # psutil
        find_held_locks,
        find_probe_leftovers,
        find_run_leftovers,
        list_processes,
    )

    project = open_project()
    places = project.places
    found, locks = list_processes(places), find_held_locks(places)
    left = list(find_run_leftovers(places, ledger=project.ledger, now_us=project.clock.now_us()))
    left += find_probe_leftovers(places)
    if is_json:
        processes = [one.to_json() for one in found]
        emit_json(
            {"processes": processes, "locks": [vars(lock) for lock in locks], "leftovers": [vars(one) for one in left]}
        )
        return
    if not found:
        click.echo("no process works in this project")
    else:
        rows = [
            (one.pid, one.started, f"{one.cpu_seconds:.0f} s", f"{one.memory_bytes >> 20} MiB", one.command[:80])
            for one in found
        ]
        click.echo(render_table(("pid", "since", "cpu", "memory", "command"), rows))
    for lock in locks:
        click.echo(f"{lock.path} is held by {lock.render_holder()}")
    if left:
        click.echo("left over:")
    for one in left:
        _print_one(one)
