"""What should run by itself, written for cron, systemd and a CI service; this machine installs nothing.

Leaves to others: doing it (each command). Every job may be run twice or be missed: commands are idempotent.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Job:
    """One thing that runs by itself."""

    name: str
    why: str
    cron: str
    """Five fields, UTC."""
    calendar: str
    """The same as systemd's OnCalendar, UTC."""
    commands: tuple[str, ...]
    """`mlops` commands, in order."""
    is_local: bool
    """Needs this machine's state (what it serves); a CI service cannot do it."""


@dataclass(frozen=True)
class Surroundings:
    """Where jobs run."""

    root: Path
    mlops: Path
    """The program."""


def list_jobs(products: Iterable[str], datasets: Iterable[str] = ()) -> tuple[Job, ...]:
    """Jobs of a project with these products and datasets."""
    erasures = tuple(f"erasure run {dataset}" for dataset in datasets)
    rebuilds = tuple(f"rebuild {product}@latest --check" for product in products)
    erasure = Job(
        "erasure",
        "people who withdrew are forgotten in time, and purged data that came back goes again",
        "10 * * * *",
        "*-*-* *:10:00 UTC",
        erasures,
        is_local=True,
    )
    return (
        Job(
            "reconcile",
            "what serves follows the desired state, and a failed instance is replaced",
            "* * * * *",
            "*-*-* *:*:00 UTC",
            ("deploy reconcile",),
            is_local=True,
        ),
        *([erasure] if erasures else []),
        Job(
            "rebuild",
            "what serves can still be made again from its attestations",
            "30 2 * * 0",
            "Sun *-*-* 02:30:00 UTC",
            rebuilds,
            is_local=True,
        ),
        Job(
            "release",
            "new data, code and dependencies are baked soon, not when somebody needs them",
            "30 1 * * *",
            "*-*-* 01:30:00 UTC",
            tuple(f"release {product}" for product in products),
            is_local=False,
        ),
    )


def render_cron(jobs: Iterable[Job], where: Surroundings) -> str:
    """Lines for `crontab -e`; a job that still runs is not started again."""
    lines = ["# mlops: install with `crontab -e`; times are UTC", "CRON_TZ=UTC"]
    root, state = shlex.quote(str(where.root)), shlex.quote(str(where.root / ".mlops"))
    for job in jobs:
        calls = "; ".join(f"{shlex.quote(str(where.mlops))} {command}" for command in job.commands)
        lock = f"flock -n {state}/schedule-{job.name}.lock"
        log = f">> {state}/schedule-{job.name}.log 2>&1"
        line = f"cd {root} && {lock} sh -c {shlex.quote(calls)} {log}"
        lines += [f"# {job.why}", f"{job.cron} {line.replace('%', chr(92) + '%')}"]  # cron ends a line at a bare %
    return "\n".join(lines)


def render_systemd(jobs: Iterable[Job], where: Surroundings) -> str:
    """A service and a timer for each job, as files for `~/.config/systemd/user/`."""
    parts: list[str] = []
    for job in jobs:
        calls = "\n".join(f"ExecStart={_escape_unit(where.mlops)} {command}" for command in job.commands)
        parts += [
            f"# --- mlops-{job.name}.service",
            f"[Unit]\nDescription=mlops {job.name}: {job.why}\n",
            f"[Service]\nType=oneshot\nWorkingDirectory={_escape_unit(where.root)}\n{calls}\n",
            f"# --- mlops-{job.name}.timer",
            f"[Unit]\nDescription=mlops {job.name}\n",
            f"[Timer]\nOnCalendar={job.calendar}\nPersistent=true\n",
            "[Install]\nWantedBy=timers.target\n",
        ]
    parts.append("# enable with: systemctl --user enable --now mlops-NAME.timer")
    return "\n".join(parts)


def render_workflow(jobs: Iterable[Job], _where: Surroundings) -> str:
    """A scheduled workflow (GitHub Actions form) of the jobs that need no state of this machine."""
    chosen = [job for job in jobs if not job.is_local and job.commands]
    environment = {"MLOPS": "${{ vars.MLOPS }}"}  # where pip finds mlops; a project's Makefile asks for it
    steps: list[dict[str, Any]] = [
        {"uses": "actions/checkout@v4", "with": {"fetch-depth": 0}},
        {"uses": "actions/setup-python@v5", "with": {"python-version": "3.11"}},
        {"run": "make setup"},
    ]
    steps += [{"name": job.why, "run": f".venv/bin/mlops {command}"} for job in chosen for command in job.commands]
    workflow = {
        "name": "mlops schedule",
        "on": {"schedule": [{"cron": job.cron} for job in chosen], "workflow_dispatch": {}},
        "permissions": {"contents": "read"},
        "jobs": {"scheduled": {"runs-on": "ubuntu-latest", "env": environment, "steps": steps}},
    }
    text = yaml.safe_dump(workflow, sort_keys=False, allow_unicode=True, width=120)
    return "# .github/workflows/schedule.yml\n" + text.replace("'on':", "on:")


FORMS: dict[str, Callable[[Iterable[Job], Surroundings], str]] = {
    "cron": render_cron,
    "systemd": render_systemd,
    "ci": render_workflow,
}
"""Name of a form to its renderer."""


def _escape_unit(path: Path) -> str:
    """A path in a unit file: `%` is special there."""
    return str(path).replace("%", "%%")
