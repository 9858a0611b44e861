"""The schedule in its three forms."""

from __future__ import annotations

import shlex
from pathlib import Path

import yaml

from mlops.cli.main import COMMANDS
from mlops.overview.schedule import FORMS, Surroundings, list_jobs

WHERE = Surroundings(Path("/srv/my project"), Path("/srv/my project/.venv/bin/mlops"))
JOBS = list_jobs(["income", "digits"], ["income"])


def test_every_job_calls_commands_that_exist() -> None:
    assert {command.split()[0] for job in JOBS for command in job.commands} <= set(COMMANDS)


def test_cron_lines_have_five_fields_and_survive_spaces_in_paths() -> None:
    lines = [
        line for line in FORMS["cron"](JOBS, WHERE).split("\n") if not line.startswith("#") and "CRON_TZ" not in line
    ]
    assert len(lines) == len(JOBS)
    for line, job in zip(lines, JOBS, strict=True):
        assert line.startswith(job.cron + " cd '/srv/my project' && flock -n ")
        shell = shlex.split(line.removeprefix(job.cron))
        assert shlex.split(shell[shell.index("sh") + 2])[0] == "/srv/my project/.venv/bin/mlops"


def test_systemd_has_a_service_and_a_timer_for_each_job() -> None:
    text = FORMS["systemd"](JOBS, WHERE)
    for job in JOBS:
        assert f"mlops-{job.name}.service" in text
        assert f"OnCalendar={job.calendar}" in text
    assert text.count("ExecStart=") == sum(len(job.commands) for job in JOBS)


def test_the_workflow_is_yaml_and_leaves_out_what_needs_this_machine() -> None:
    workflow = yaml.safe_load(FORMS["ci"](JOBS, WHERE))
    runs = "".join(step.get("run", "") for step in workflow["jobs"]["scheduled"]["steps"])
    assert "mlops release income" in runs
    assert "reconcile" not in runs
    assert workflow["jobs"]["scheduled"]["env"] == {"MLOPS": "${{ vars.MLOPS }}"}
    assert [entry["cron"] for entry in workflow[True]["schedule"]] == [job.cron for job in JOBS if not job.is_local]
