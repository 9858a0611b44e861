"""Purging: everything that holds withdrawn people, or learned from them, leaves every store, with a receipt for each.

Signed intent first, then the stores one after the other, those that could serve before those that only keep; doing it
again after a crash, or when a store is back, does what is left. What still serves and the pinned dataset version are
never touched: the receipt says why. Leaves to others: what is affected (affected.py), each store's own removal.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlops.datasets.forgetting import purge_shards, sweep_returned
from mlops.datasets.locations import load_locations
from mlops.datasets.manifest import Shard
from mlops.datasets.objects import is_local, object_path
from mlops.datasets.raw_removal import purge_raw
from mlops.datasets.recipe import load_recipe
from mlops.deploy.erased import record_purge
from mlops.deploy.purging import drop_ways_back, find_serving, remove_copies
from mlops.deploy.runtimes import list_runtimes
from mlops.deploy.site import Site
from mlops.erasure.affected import Affected, find_pinned
from mlops.errors import MlopsError
from mlops.evaluation.store import purge_findings, purge_result
from mlops.files import remove_tree
from mlops.project.opening import Project
from mlops.provenance.lineage import walk_back
from mlops.registry.mlflow_purge import purge_mlflow
from mlops.serving.oci_layout import ImageLayout
from mlops.serving.pushed_images import delete_pushed, list_pushed
from mlops.serving.runtime import Runtime
from mlops.training.checkpoints import purge_sweep
from mlops.training.isolation import find_slices
from mlops.training.step_export import purge_candidate


@dataclass(frozen=True)
class Receipt:
    """What became of one thing in one store."""

    store: str
    """`dvc`, `raw`, `mlflow`, `checkpoints`, `candidates`, `evidence`, `images`, `registry …`, `environment …`, …"""
    what: str
    digest: str
    """`sha256:…` or `md5:…`; empty for what has none."""
    is_gone: bool
    """Looked at after the removal; never true for a store that could not be reached."""
    reason: str
    """Why it is not gone, or a remark; empty when there is nothing to say."""

    def to_json(self) -> dict[str, Any]:
        """For the certificate."""
        return asdict(self)


@dataclass(frozen=True)
class _Purge:
    """One purge on its way."""

    project: Project
    site: Site
    affected: Affected
    """Without what still serves."""
    runtimes: Sequence[Runtime]


def purge(
    project: Project,
    affected: Affected,
    *,
    say: Callable[[str], None],
    runtimes: Sequence[Runtime] | None = None,
    is_restored: bool = False,
) -> tuple[Receipt, ...]:
    """Remove what is affected from every store.

    Args:
        project: An open project.
        affected: From `find_affected`.
        say: Prints one line of progress.
        runtimes: Where copies of images may run; by default every installed one.
        is_restored: Whether the project came out of a backup just now, so that nothing serves whatever its ledger says.

    Returns:
        A receipt for each thing in each store; all of them `is_gone` means that nothing is left.
    """
    started_us = project.clock.now_us()
    site = Site(project.places, project.ledger, project.clock, project.ids, project.step_book)
    used = list_runtimes(project.places.serving_state) if runtimes is None else runtimes
    goal, kept = (affected, ()) if is_restored else _spare_serving(project, site, affected)
    it = _Purge(project, site, goal, used)
    erased = {*goal.candidates, *goal.evidence, *goal.images, *_purgeable_manifests(it)}
    receipts = list(kept)
    if erased:
        step_id = record_purge(
            project.step_book, dataset=affected.dataset, manifests=affected.manifests, erased=erased,
            started_us=started_us,
        )  # fmt: skip
        say(f"purge {step_id}: {len(erased)} digests")
    for name, sweep in _STORES.items():
        if is_restored and name == "environments":
            continue  # what was purged is not admitted; git may know a newer state than the restored ledger
        found: list[Receipt] = []
        try:
            found.extend(sweep(it))
        except (MlopsError, OSError) as error:
            found.append(Receipt(name, "everything of this purge", "", False, str(error)))
        left = [receipt for receipt in found if not receipt.is_gone]
        if found:
            say(f"  {name}: {len(found) - len(left)} gone" + (f", {len(left)} LEFT: {left[0].reason}" if left else ""))
        receipts += found
    return tuple(receipts)


def _spare_serving(project: Project, site: Site, affected: Affected) -> tuple[Affected, tuple[Receipt, ...]]:
    """What may go now, and a receipt for each image that still serves; all it was made of stays with it."""
    serving = find_serving(site, affected.images)
    if not serving:
        return affected, ()
    with project.ledger.read() as connection:
        behind = walk_back(connection, serving).steps
    needed = {digest for step in behind for digest in step.outputs.values()} | set(serving)
    sweeps = {str(step.facts.get("sweep_id")) for step in behind if step.kind == "sweep"}
    spared = replace(
        affected,
        images=_without(affected.images, needed),
        candidates=_without(affected.candidates, needed),
        evidence=_without(affected.evidence, needed),
        models=tuple(model for model in affected.models if model.digest not in needed),
        sweeps=tuple(sweep for sweep in affected.sweeps if sweep.sweep_id not in sweeps),
        trials=tuple(trial for trial in affected.trials if trial.sweep_id not in sweeps),
    )
    kept = [
        Receipt("images", "image and model that still serve", image, False, f"still serves in {environment}")
        for image, environment in sorted(serving.items())
    ]
    return spared, tuple(kept)


def _without(digests: tuple[str, ...], needed: Collection[str]) -> tuple[str, ...]:
    return tuple(digest for digest in digests if digest not in needed)


def _purgeable_manifests(it: _Purge) -> frozenset[str]:
    pinned = find_pinned(it.project.places, it.affected.dataset)
    return frozenset(it.affected.manifests) - {pinned.digest if pinned is not None else ""}


def _sweep_environments(it: _Purge) -> Iterator[Receipt]:
    for found in drop_ways_back(it.site, it.affected.images):
        yield Receipt(found.place, found.what, found.image, found.is_gone, found.reason)


def _sweep_runtimes(it: _Purge) -> Iterator[Receipt]:
    for found in remove_copies(it.site, it.affected.images, it.runtimes):
        yield Receipt(found.place, found.what, found.image, found.is_gone, found.reason)


def _sweep_images(it: _Purge) -> Iterator[Receipt]:
    layout = ImageLayout(it.project.places.images)
    freed = layout.purge_images(it.affected.images) if it.affected.images else {}
    for image in it.affected.images:
        what = f"image with its layers, {freed[image]} bytes" if image in freed else "image with its layers"
        is_gone = layout.find(image) is None and not layout.has_blob(image)
        yield Receipt("images", what, image, is_gone, "" if image in freed else "was not here")


def _sweep_registries(it: _Purge) -> Iterator[Receipt]:
    with it.project.ledger.read() as connection:
        copies = list_pushed(connection, it.affected.images)
    for copy in copies:
        store = f"registry {copy.registry}"
        try:
            remark = delete_pushed(copy)
        except MlopsError as error:
            yield Receipt(store, f"image in {copy.repository}", copy.image, False, error.message)
            continue
        yield Receipt(store, f"image in {copy.repository}", copy.image, True, remark)


def _sweep_mlflow(it: _Purge) -> Iterator[Receipt]:
    models = [(model.product, model.number) for model in it.affected.models]
    runs = [sweep.run_id for sweep in it.affected.sweeps] + [trial.run_id for trial in it.affected.trials]
    if models or runs:
        for found in purge_mlflow(it.project.places, models=models, runs=filter(None, runs)):
            yield Receipt("mlflow", found.what, "", found.is_gone, found.reason)


def _sweep_candidates(it: _Purge) -> Iterator[Receipt]:
    for digest in it.affected.candidates:
        was_here = purge_candidate(it.project.places, digest)
        yield Receipt("candidates", "candidate", digest, True, "" if was_here else "was not here")


def _sweep_checkpoints(it: _Purge) -> Iterator[Receipt]:
    for sweep in it.affected.sweeps:
        was_here = purge_sweep(it.project.places.checkpoints, sweep.sweep_id)
        what = f"checkpoints, trial models and audits of {sweep.sweep_id}"
        yield Receipt("checkpoints", what, "", True, "" if was_here else "was not here")
    shards = {found.shard.sha256 for found in it.affected.shards}
    for folder in find_slices(it.project.places.checkpoints, shards=shards):
        remove_tree(folder)
        what = f"{folder.parent.name} that saw their shards"
        yield Receipt("checkpoints", what, f"sha256:{folder.name}", True, "")


def _sweep_evidence(it: _Purge) -> Iterator[Receipt]:
    for digest in it.affected.evidence:
        was_here = purge_result(it.project.places, digest)
        yield Receipt("evidence", "gate result and plots", digest, True, "" if was_here else "was not here")
    if it.affected.candidates and purge_findings(it.project.places):
        yield Receipt("evidence", "kept findings of checks", "", True, "they are found anew when they are needed")


def _sweep_shards(it: _Purge) -> Iterator[Receipt]:
    places, dataset = it.project.places, it.affected.dataset
    shards: dict[str, Shard] = {found.shard.md5: found.shard for found in it.affected.shards}
    version = find_pinned(places, dataset)
    if version is None:
        yield from _look_for_shards(it, shards)
        return
    pinned = {shard.md5 for shard in version.manifest.shards}
    for md5 in sorted(pinned & shards.keys()):
        shard = shards.pop(md5)
        reason = "the pinned version needs it: take the person out of that first"
        yield Receipt("dvc", f"shard {shard.relpath}", f"sha256:{shard.sha256}", False, reason)
    for found in purge_shards(places, dataset, shards.values()) if shards else ():
        shard = shards[found.md5]
        remark = found.reason or (f"removed from {', '.join(found.removed_from)}" if found.removed_from else "was gone")
        yield Receipt("dvc", f"shard {shard.relpath}", f"sha256:{shard.sha256}", found.is_gone, remark)
    for line in sweep_returned(places, dataset):
        is_gone = "not swept" not in line
        if is_gone or not shards:
            yield Receipt("dvc", f"returned object {line}", "", is_gone, "" if is_gone else line)


def _look_for_shards(it: _Purge, shards: dict[str, Shard]) -> Iterator[Receipt]:
    """In a clone without the pinned version nothing is removed: nothing would show that a remote is really there."""
    urls = load_locations(it.project.places).object_urls
    for md5, shard in sorted(shards.items()):
        places = [url for url in urls if not is_local(url) or Path(object_path(url, md5)).exists()]
        reason = f"import the dataset and purge again; not seen: {', '.join(places)}" if places else "is not here"
        yield Receipt("dvc", f"shard {shard.relpath}", f"sha256:{shard.sha256}", not places, reason)


def _sweep_raw(it: _Purge) -> Iterator[Receipt]:
    if it.affected.shards:
        recipe = load_recipe(it.project.places, it.affected.dataset)
        for found in purge_raw(it.project.places, recipe, it.affected.subjects):
            yield Receipt("raw", found.path, found.digest, found.is_gone, found.reason)


_STORES: dict[str, Callable[[_Purge], Iterator[Receipt]]] = {
    "environments": _sweep_environments, "runtimes": _sweep_runtimes, "registries": _sweep_registries,
    "images": _sweep_images, "mlflow": _sweep_mlflow, "candidates": _sweep_candidates,
    "checkpoints": _sweep_checkpoints,
    "evidence": _sweep_evidence, "dvc": _sweep_shards, "raw": _sweep_raw,
}  # fmt: skip
"""In this order: first what could serve again, the rows themselves last."""
