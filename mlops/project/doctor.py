"""`mlops doctor`: one examination of the machine and of the project, in or outside of a project.

Leaves to others: the single looks (machine_examination.py, file_examination.py), printing (mlops/cli).
"""

from __future__ import annotations

from pathlib import Path

from mlops.clock import SECOND_US, Clock
from mlops.errors import ProjectError
from mlops.places import Places, find_root
from mlops.project.diagnosis import Diagnosis, Examination
from mlops.project.file_examination import examine_files
from mlops.project.machine_examination import examine_machine


def examine(start: Path, *, clock: Clock) -> Examination:
    """Look at everything around `start`; outside of a project that is said, and the machine is looked at alone."""
    try:
        places: Places | None = Places(find_root(start))
    except ProjectError as error:
        places = None
        project: tuple[Diagnosis, ...] = (Diagnosis("project", "broken", error.message, hint=error.hint),)
    machine = examine_machine(places, now_seconds=clock.now_us() / SECOND_US)
    if places is not None:
        project = examine_files(places)
    return Examination(machine=machine, project=project)
