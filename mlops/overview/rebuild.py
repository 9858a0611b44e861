"""Rebuilding a release from its attestations alone: a clean clone, the dataset by digest, one trial, the same digests?

Leaves to others: the work inside the clean place (rebuild_worker.py), and what the attestations say (rebuild_plan.py).
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from mlops.datasets.fence import find_training_fence
from mlops.datasets.locations import load_locations
from mlops.datasets.version import load_dataset_version
from mlops.deploy.chain_rules import load_machine_keyring
from mlops.errors import ProvenanceError
from mlops.files import write_atomically
from mlops.overview.rebuild_plan import (
    Comparison,
    RebuildPlan,
    compare_rebuild,
    find_newest_image,
    plan_rebuild,
    read_signed_steps,
)
from mlops.overview.status import REBUILD
from mlops.overview.trace import find_served_images
from mlops.project.opening import Project
from mlops.provenance.digest import digest_code, digest_json
from mlops.provenance.git_repository import open_repository
from mlops.provenance.lineage import find_starts, walk_back, walk_forward
from mlops.provenance.reference import Reference
from mlops.provenance.steps import StepOutcome

_KEPT = "kept"
"""Marks a clean place that somebody wants to look at."""


@dataclass(frozen=True)
class Rebuilt:
    """How a rebuild went."""

    plan: RebuildPlan
    comparisons: tuple[Comparison, ...]
    strays: tuple[str, ...]
    """Locked packages that are installed in another version here; they explain differences."""
    step_id: str | None
    """The signed record of a good rebuild."""

    @property
    def different(self) -> tuple[Comparison, ...]:
        """Digests that did not come out the same."""
        return tuple(comparison for comparison in self.comparisons if not comparison.is_equal)


def find_plan(project: Project, reference: Reference) -> RebuildPlan:
    """What a REF was made of, from signed statements.

    Raises:
        ProvenanceError: Unknown reference, or no whole chain of counting signatures.
    """
    with project.ledger.read() as connection:
        starts = find_starts(connection, reference, find_served=lambda name: find_served_images(project, name))
        image = find_newest_image(walk_forward(connection, starts))
        lineage = walk_back(connection, [*starts, *(image.outputs.values() if image is not None else ())])
    return plan_rebuild(read_signed_steps(lineage.steps, keyring=load_machine_keyring(project.places)))


def rebuild_release(project: Project, plan: RebuildPlan, *, is_kept: bool, say: Callable[[str], None]) -> Rebuilt:
    """Make it again and compare; a good rebuild is recorded as a signed step.

    Args:
        project: The real project: it gives history, remote and content store, and pays.
        plan: What to make.
        is_kept: Leave the clean place for a look.
        say: Prints one line of progress.

    Raises:
        DatasetError: The data was purged since.
        ProvenanceError: It was trained on people who withdrew, its commit is not in this repository, or a step failed.
    """
    version = load_dataset_version(project.places, plan.dataset, revision=plan.dvc_digest)
    fence = find_training_fence(project.places, version)
    if fence is not None:
        raise ProvenanceError(f"{plan.product}@{plan.number} is not trained again: {fence.reasons[0].text}")
    places = project.places.state / "rebuild"
    remove_ended(places)
    folder = places / f"{plan.product}-{plan.number}-{os.getpid()}"
    started_us = project.clock.now_us()
    try:
        digests = _rebuild_in(folder, project, plan, say=say)
    finally:
        if is_kept and folder.is_dir():
            (folder / _KEPT).touch()
        elif not is_kept:
            shutil.rmtree(folder, ignore_errors=True)
    comparisons = compare_rebuild(plan, digests)
    lock = open_repository(project.places.root).read_file("requirements.lock", revision=plan.commit).decode()
    strays = find_stray_packages(lock)
    if any(not comparison.is_equal for comparison in comparisons):
        return Rebuilt(plan, comparisons, strays, None)
    record = project.step_book.record(
        REBUILD,
        product=plan.product,
        inputs={"image": plan.recorded["image"], "code": digest_code("mlops.overview")},
        outcome=StepOutcome(
            outputs={"rebuild": digest_json(digests)},
            facts={
                "summary": f"{plan.product}@{plan.number} came out the same",
                "commit": plan.commit,
                "digests": digests,
            },
        ),
        started_us=started_us,
    )
    return Rebuilt(plan, comparisons, strays, record.step_id)


def remove_ended(folder: Path) -> None:
    """Remove the clean places of rebuilds that were killed, but for those that somebody wanted to keep."""
    for place in folder.glob("*-*"):
        pid = place.name.rpartition("-")[2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)) and not (place / _KEPT).exists():
            shutil.rmtree(place, ignore_errors=True)


def find_stray_packages(lock: str) -> tuple[str, ...]:
    """Packages that a lock (`name==version` lines) pins and that are installed in another version, or not at all."""
    pinned = dict(re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", lock, flags=re.MULTILINE))
    found: list[str] = []
    for name, version in sorted(pinned.items()):
        try:
            installed = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            installed = "none"
        if installed != version:
            found.append(f"{name}: locked {version}, installed {installed}")
    return tuple(found)


def _rebuild_in(folder: Path, project: Project, plan: RebuildPlan, *, say: Callable[[str], None]) -> dict[str, str]:
    say(f"clean clone of commit {plan.commit[:12]} in {folder}")
    root = open_repository(project.places.root).clone_at(plan.commit, folder / "clone")
    _point_to_remotes(project, root)
    _share_downloads(project, root)
    request = {**plan.to_json(), "ledger_url": project.ledger_url, "person": project.person}
    write_atomically(folder / "plan.json", json.dumps(request))
    has_own_code = (root / "mlops" / "overview" / "rebuild_worker.py").is_file()
    environment = {name: value for name, value in os.environ.items() if name not in ("MLOPS_LEDGER", "PYTHONPATH")}
    environment["PYTHONWARNINGS"] = "ignore"  # progress only
    if has_own_code:  # the machine's own repository: run the code of that commit, not the one installed now
        environment["PYTHONPATH"] = str(root)
    result_file = folder / "result.json"
    command = [sys.executable, "-P", "-m", "mlops.overview.rebuild_worker", str(folder / "plan.json"), str(result_file)]
    process = subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True)
    last = ""
    assert process.stderr is not None
    for line in process.stderr:
        last = line.strip() or last
        say(f"  {line.rstrip()}")
    if process.wait() != 0 or not result_file.is_file():
        raise ProvenanceError(f"the rebuild ended with exit code {process.returncode}: {last}", hint="--keep leaves it")
    result = json.loads(result_file.read_text(encoding="utf-8"))
    if result["error"] is not None:
        error = result["error"]
        raise ProvenanceError(
            f"the rebuild failed: {error['message']}", hint=error["hint"], items=tuple(error["items"])
        )
    digests: dict[str, str] = result["digests"]
    return digests


def _point_to_remotes(project: Project, root: Path) -> None:
    """The clone reads datasets from the real project's remotes, and has a cache of its own."""
    parser = configparser.ConfigParser(interpolation=None)
    for name, url in load_locations(project.places).remotes:
        parser[f"'remote \"{name}\"'"] = {"url": url}
    path = root / ".dvc" / "config.local"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        parser.write(stream)


def _share_downloads(project: Project, root: Path) -> None:
    """The content store of packages: each file in it is checked against the lock when it is used."""
    project.places.downloads.mkdir(parents=True, exist_ok=True)
    target = root / ".mlops" / "store"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(project.places.downloads, target_is_directory=True)
