"""The version without the people of a batch: rewritten shards, one signed commit of the pin, and the record of it.

Leaves to others: rewriting (mlops/datasets/forgetting.py), committing (mlops/provenance), what is trained on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from mlops.datasets.forgetting import forget_subjects
from mlops.datasets.parts import load_part_pins
from mlops.datasets.receipts import load_receipt, save_receipt
from mlops.datasets.recipe import WheelSource, load_recipe
from mlops.datasets.rewriting import Rewrite
from mlops.datasets.step_import import KIND
from mlops.datasets.tombstones import load_tombstones, purged_file, tombstone_file
from mlops.datasets.version import DatasetVersion, load_dataset_version
from mlops.errors import Reason, Refusal
from mlops.files import write_atomically
from mlops.places import Places
from mlops.project.opening import Project
from mlops.provenance.digest import digest_code, digest_json
from mlops.provenance.git_commits import commit_files
from mlops.provenance.git_repository import GitRepository, open_repository
from mlops.provenance.keys import MACHINE, make_key
from mlops.provenance.steps import StepOutcome, StepRun, Workbench

CODE = ("mlops.datasets.forgetting", "mlops.datasets.rewriting", "mlops.datasets.shards")
"""Modules that decide how a version without some people looks."""


def find_uncommitted(places: Places, dataset: str) -> Refusal | None:
    """Whether the pin was changed and not committed: the machine commits only what it wrote itself."""
    dirty = open_repository(places.root).dirty_paths(*_paths(places, dataset))
    if not dirty:
        return None
    text = "is not committed; commit it, or put it back with `git checkout`, before people are taken out of it"
    return Refusal(tuple(Reason("dirty-path", f"{path} {text}") for path in dirty))


def describe_version(version: DatasetVersion) -> dict[str, Any]:
    """Digests and size of a version, for the record."""
    manifest = version.manifest
    return {
        "digest": version.digest,
        "dvc_digest": version.dvc_digest,
        "rows": manifest.rows,
        "shards": len(manifest.shards),
    }


def make_clean_version(project: Project, dataset: str, subjects: Iterable[bytes]) -> dict[str, Any] | Refusal:
    """Rewrite, then commit; killed anywhere, the next call ends in the same version and the same content of the commit.

    Returns:
        Facts of the step: the commit and the version after.

    Raises:
        DatasetError: A shard is missing, or a store cannot be written.
        ProjectError: The project is not in git.
    """
    places = project.places
    _restore_known(places, dataset)
    forgetting = forget_subjects(places, dataset, subjects)
    after = load_dataset_version(places, dataset)
    _carry_receipt(places, dataset, forgetting.rewrite)
    commit = commit_state(
        project,
        dataset,
        message=f"Forget people in {dataset}\n\nThe version without everyone who withdrew.\n\nDataset: {after.digest}",
    )
    if isinstance(commit, Refusal):
        return commit
    return {"after": describe_version(after), "commit": commit}


def compare_versions(before: DatasetVersion, after: DatasetVersion) -> dict[str, Any]:
    """Which shards differ, with row counts; from the manifests alone, so that a crash in between loses nothing."""
    successors = {shard.relpath: shard for shard in after.manifest.shards}
    shards = []
    for old in before.manifest.shards:
        new = successors.get(old.relpath)
        if new is None or new.sha256 != old.sha256:
            shards.append(
                {
                    "path": old.relpath,
                    "before": f"sha256:{old.sha256}",
                    "after": None if new is None else f"sha256:{new.sha256}",
                    "rows_before": old.rows,
                    "rows_after": 0 if new is None else new.rows,
                }
            )
    return {"shards": shards, "rows_removed": before.manifest.rows - after.manifest.rows}


def commit_state(project: Project, dataset: str, *, message: str) -> str | Refusal:
    """Commit pins, marks and raw files of a dataset as the machine wrote them; HEAD when they are committed."""
    places = project.places
    files = {path: (places.root / path).read_bytes() for path in _paths(places, dataset)}
    return commit_files(
        open_repository(places.root),
        files,
        message=message,
        key=make_key(places.keys_folder, MACHINE, clock=project.clock),
        clock=project.clock,
        is_written=True,
    )


def data_step(bench: Workbench, *, product: str, dataset: str) -> StepRun:
    """The release step for data that came out of a rewrite: the pinned version as it is; raw files are not read.

    The former version is no input of it, or everything made from here on would count as made from the people who left.
    """
    places = bench.places
    version = load_dataset_version(places, dataset)
    withdrawn = sorted(subject.hex() for subject in load_tombstones(places, dataset))

    def describe() -> StepOutcome:
        facts = {
            "summary": f"{dataset} {version.digest[7:19]}: {version.manifest.rows} rows, without who withdrew",
            "dataset": dataset,
            "dvc_digest": version.dvc_digest,
            "rows": version.manifest.rows,
        }
        return StepOutcome(outputs={"manifest": version.digest}, facts=facts)

    inputs = {
        "recipe": load_recipe(places, dataset).digest,
        "tombstones": digest_json(withdrawn),
        "code": digest_code(*CODE),
    }
    return bench.book.run(
        KIND,
        product=product,
        inputs=inputs,
        action=describe,
        is_present=lambda record: record.outputs["manifest"] == version.digest,
    )


def _paths(places: Places, dataset: str) -> tuple[str, ...]:
    pins = {part.pin_path for part, _ in load_part_pins(places, dataset)}
    marks = [path for path in (tombstone_file(places, dataset), purged_file(places, dataset)) if path.is_file()]
    return tuple(sorted({*pins, *(path.relative_to(places.root).as_posix() for path in marks), *_raw(places, dataset)}))


def _raw(places: Places, dataset: str) -> list[str]:
    """Raw files in git: a purge rewrites them."""
    source = load_recipe(places, dataset).source
    paths = [] if isinstance(source, WheelSource) else [raw.path for raw in source.files]
    repository = open_repository(places.root)
    return [path for path in paths if (places.root / path).is_file() and repository.is_tracked(path)]


def _restore_known(places: Places, dataset: str) -> None:
    """Tombstones of the last commit that the work tree lost, for instance by a checkout of an older commit."""
    repository = open_repository(places.root)
    path = tombstone_file(places, dataset)
    committed = _committed_lines(repository, path.relative_to(places.root).as_posix())
    present = set(path.read_text(encoding="utf-8").split()) if path.is_file() else set()
    if committed - present:
        write_atomically(path, "".join(f"{line}\n" for line in sorted(committed | present)))


def _committed_lines(repository: GitRepository, path: str) -> set[str]:
    if path not in repository.list_files(path, revision="HEAD"):
        return set()
    return set(repository.read_file(path, revision="HEAD").decode().split())


def _carry_receipt(places: Places, dataset: str, rewrite: Rewrite | None) -> None:
    """The rewritten version is what an import without these people makes, so the next import need not make it again."""
    last = load_receipt(places, dataset)
    if rewrite is None or last is None or last.dvc_digest != rewrite.before.dvc_digest:
        return
    withdrawn = digest_json(sorted(subject.hex() for subject in load_tombstones(places, dataset)))
    save_receipt(places, dataset, replace(last, dvc_digest=rewrite.after.dvc_digest, tombstones=withdrawn))
