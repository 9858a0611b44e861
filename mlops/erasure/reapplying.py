"""After a restore: who withdrew is taken out again of everything that an old backup brought back.

People whose withdrawal is still open stand in the pinned version; their batch goes on with `mlops erasure run`.
Leaves to others: restoring (mlops/overview/restore.py), purging itself (purging.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from mlops.datasets.fence import find_withdrawn
from mlops.datasets.parts import list_pinned
from mlops.datasets.tombstones import load_committed_tombstones, load_purged
from mlops.datasets.version import load_dataset_version
from mlops.erasure.affected import find_affected
from mlops.erasure.purging import purge
from mlops.errors import DatasetError
from mlops.project.opening import Project


def reapply_withdrawals(project: Project) -> Iterator[str]:
    """Purge what holds people who left the pinned versions before; yields what was done, for people.

    Raises:
        DatasetError: Whether old versions hold somebody cannot be told: a manifest or a shard in question is missing.
    """
    for dataset in list_pinned(project.places):
        gone = load_committed_tombstones(project.places, dataset)
        if not gone and not load_purged(project.places, dataset):
            continue
        try:
            version = load_dataset_version(project.places, dataset)
            gone -= find_withdrawn(project.places, version, subjects=gone)
        except DatasetError:
            yield f"{dataset}: the rows of the pinned version are not here yet; whoever left it before is not in them"
        affected = find_affected(project, dataset, gone, is_cautious=True)
        receipts = purge(project, affected, say=lambda line: None, is_restored=True)
        left = [receipt for receipt in receipts if not receipt.is_gone]
        yield f"{dataset}: {len(receipts) - len(left)} things of {len(gone)} withdrawn people purged again"
        yield from (f"{dataset}: LEFT {receipt.store} {receipt.what}: {receipt.reason}" for receipt in left)
