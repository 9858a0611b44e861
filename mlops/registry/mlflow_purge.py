"""Removing models and artefacts of an erasure from MLflow: versions, model folders, everything a run was given.

Runs keep their numbers, parameters and tags: they hold no rows. Leaves to others: which of them go (mlops/erasure).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from mlops.errors import MlopsError, ProvenanceError
from mlops.places import Places
from mlops.registry.mlflow_door import artifact_root, has_store, open_client, spool_folder, tracking_uri
from mlops.registry.mlflow_runs import find_run_id, open_mirror

if TYPE_CHECKING:
    from mlflow import MlflowClient

ERASED_TAG = "mlops.erased"
_FLUSH_SECONDS = 30.0


@dataclass(frozen=True)
class MlflowReceipt:
    """What became of one thing in MLflow."""

    what: str
    """`income@3`, or `artefacts of run …`."""
    is_gone: bool
    reason: str


def purge_mlflow(
    places: Places, *, models: Iterable[tuple[str, int]], runs: Iterable[str]
) -> tuple[MlflowReceipt, ...]:
    """Delete model versions, and the artefacts of runs; what MLflow cannot do is told in the receipt.

    Args:
        places: The project.
        models: (product, number) of versions.
        runs: Run ids or a mirror's handles.

    Raises:
        ProvenanceError: The store cannot be opened.
    """
    wanted, uri = tuple(dict.fromkeys(runs)), tracking_uri(places)
    spool = spool_folder(places)
    if spool.is_dir():  # what MLflow has not taken yet would arrive after the removal
        with open_mirror(places) as mirror:
            mirror.flush(timeout_seconds=_FLUSH_SECONDS)
    if not has_store(uri):
        return ()
    root = artifact_root(places)
    client = open_client(uri, artifacts=root)
    receipts = [
        _attempt(f"{product}@{number}", partial(_purge_version, client, product, number))
        for product, number in dict.fromkeys(models)
    ]
    receipts += [_attempt(f"artefacts of run {run}", partial(_purge_run, client, run, root)) for run in wanted]
    waiting = sorted(path.name for path in (spool / "files").glob("*")) if spool.is_dir() else []
    if waiting:
        receipts.append(MlflowReceipt("files that wait for MLflow", False, f"MLflow has not taken {len(waiting)} yet"))
    return tuple(receipts)


def _attempt(what: str, action: Callable[[], str]) -> MlflowReceipt:
    try:
        reason = action()
    except MlopsError as error:
        return MlflowReceipt(what, False, error.message)
    except Exception as error:  # MLflow lets its drivers' and its stores' exceptions through
        return MlflowReceipt(what, False, f"MLflow does not remove it: {error}")
    return MlflowReceipt(what, True, reason)


def _purge_version(client: MlflowClient, product: str, number: int) -> str:
    """Delete a version with its aliases; MLflow keeps its tags, which are digests."""
    if not client.search_model_versions(f"name = '{product}' and version_number = '{number}'"):
        return "was not here"
    client.delete_model_version(product, str(number))
    return ""


def _purge_run(client: MlflowClient, run: str, root: Path | None) -> str:
    """Delete a run's artefacts where they lie, and check; a copied project names those of the one it came from."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository  # loaded with the client

    run_id = find_run_id(client, run)
    if run_id is None:
        return "was not here"
    uri = client.get_run(run_id).info.artifact_uri
    parsed = urlparse(uri)
    if root is not None and parsed.scheme in ("", "file") and not Path(unquote(parsed.path)).is_relative_to(root):
        raise ProvenanceError(f"{uri} lies outside this project")
    repository = get_artifact_repository(uri)
    had = bool(repository.list_artifacts())
    if had:
        repository.delete_artifacts()  # type: ignore[no-untyped-call]
        if repository.list_artifacts():
            raise ProvenanceError(f"{uri} holds artefacts after their removal")
    client.set_tag(run_id, ERASED_TAG, "true")
    return "" if had else "was not here"
