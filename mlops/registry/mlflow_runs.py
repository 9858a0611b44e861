"""The mirror of sweeps in MLflow: one thread sends what callers said, in batches, and no caller waits for it.

Every operation goes to the spool first; MLflow being away, slow or restarted delays nothing and loses nothing.
Leaves to others: which operations there are and how they fold (mirror.py), the spool file (spool.py).
"""

from __future__ import annotations

import functools
import getpass
import json
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops.clock import Clock, SystemClock
from mlops.places import Places
from mlops.registry.mirror import (
    HANDLE_PREFIX,
    DatasetReference,
    Operation,
    RunChange,
    Status,
    fold_operations,
    inherited_tags,
    make_handle,
)
from mlops.registry.mlflow_door import artifact_root, open_client, spool_folder, tracking_uri
from mlops.registry.spool import Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH_SECONDS = 1.0
"""What is said meanwhile is sent together: a short trial that begins and ends in it costs half of one sent in parts."""
TAG_LETTERS = 8_000
BATCH_ITEMS = 1_000
"""MLflow's limit for one `log_batch`, all kinds together."""
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
_LOG = logging.getLogger(__name__)


class RunMirror:
    """Implements `Mirror` with MLflow.

    Args:
        tracking_uri: From `mlflow_door.tracking_uri`.
        artifact_root: From `mlflow_door.artifact_root`; None lets a tracking server decide.
        spool_folder: From `mlflow_door.spool_folder`; default beside `artifact_root`.
        clock: Gives the times of operations that name none.
    """

    def __init__(
        self,
        tracking_uri: str,
        artifact_root: Path | None,
        *,
        spool_folder: Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        folder = spool_folder or (artifact_root.parent / "spool" if artifact_root else Path(".mlops/mlflow/spool"))
        self._clock = clock or SystemClock()
        self._spool = Spool(folder)
        self._sender = _Sender(tracking_uri, artifact_root, self._spool)
        self._inherited: dict[str, tuple[dict[str, str], dict[str, Any]]] = {}
        self._waiting: list[Operation] = []
        self._is_sending = False
        self._is_closing = False
        self._is_urgent = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def start_sweep(
        self,
        name: str,
        *,
        key: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        dataset: DatasetReference | None = None,
        product: str = "",
        at_us: int | None = None,
    ) -> str:
        """See `Mirror`."""
        shared = {"product": product or "mlops", "dataset": _dataset_body(dataset)}
        self._inherited[make_handle(key)] = (inherited_tags(tags), shared)
        return self._start(name, key=key, tags=tags, params=params, parent=None, shared=shared, at_us=at_us)

    def start_trial(
        self,
        parent_run_id: str,
        *,
        key: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        at_us: int | None = None,
    ) -> str:
        """See `Mirror`."""
        inherited, shared = self._inherited[parent_run_id]
        return self._start(
            name, key=key, tags={**inherited, **tags}, params=params, parent=parent_run_id, shared=shared, at_us=at_us
        )

    def _start(
        self,
        name: str,
        *,
        key: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        parent: str | None,
        shared: Mapping[str, Any],
        at_us: int | None,
    ) -> str:
        handle = make_handle(key)
        own = {name: str(value) for name, value in tags.items()}
        texts = {name: str(value) for name, value in params.items()}
        body = {"name": name, "key": key, "parent": parent, "tags": own, "params": texts, **shared}
        self._say("start", handle, at_us, body)
        return handle

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, step: int, at_us: int | None = None) -> None:
        """See `Mirror`."""
        numbers = {name: float(value) for name, value in metrics.items()}
        self._say("metrics", run_id, at_us, {"metrics": numbers, "step": step})

    def log_file(self, run_id: str, path: Path, *, folder: str = "") -> None:
        """See `Mirror`."""
        self._say("file", run_id, None, {"path": str(self._spool.keep_files(path.resolve())), "folder": folder})

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """See `Mirror`."""
        self._say("tags", run_id, None, {"tags": {name: str(value) for name, value in tags.items()}})

    def end(self, run_id: str, status: Status, *, at_us: int | None = None) -> None:
        """See `Mirror`."""
        self._say("end", run_id, at_us, {"status": status})

    def find_mlflow_run(self, run_id: str, *, timeout_seconds: float = 30.0) -> str | None:
        """See `Mirror`."""
        if not run_id.startswith(HANDLE_PREFIX):
            return run_id
        if run_id not in self._sender.run_ids:
            self.flush(timeout_seconds=timeout_seconds)
        return self._sender.run_ids.get(run_id)

    def flush(self, *, timeout_seconds: float = 30.0) -> bool:
        """See `Mirror`."""
        with self._changed:
            self._is_urgent = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._waiting and not self._is_sending, timeout_seconds)

    def close(self, *, timeout_seconds: float = 30.0) -> None:
        """See `Mirror`."""
        is_sent = self.flush(timeout_seconds=timeout_seconds)
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout=timeout_seconds if is_sent else 0.1)
        if not is_sent:
            _LOG.warning("MLflow did not answer: what it lacks is kept and will be sent by the next command")
        self._spool.close(keep=not is_sent)

    def __enter__(self) -> RunMirror:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _say(self, kind: Any, run: str, at_us: int | None, body: dict[str, Any]) -> None:
        operation = Operation(kind=kind, run=run, at_us=at_us or self._clock.now_us(), body=body)
        with self._changed:
            self._spool.append(operation)
            self._waiting.append(operation)
            self._changed.notify_all()

    def _run(self) -> None:
        """The thread: adopt what dead processes left, then send batches until closed."""
        failures = 0
        orphans = self._spool.adopt_orphans()
        while True:
            batch = self._take_batch(has_orphans=bool(orphans), failures=failures)
            if batch is None:
                return
            try:
                while orphans:
                    self._sender.send(orphans[0].operations)
                    orphans.pop(0).remove()
                self._sender.send(batch)
            except Exception as error:  # whatever MLflow's client raises: keep, wait, try again
                failures += 1
                _LOG.debug("MLflow did not take a batch: %s", error)
                self._finish_batch(batch, is_sent=False)
            else:
                failures = 0
                self._finish_batch(batch, is_sent=True)

    def _take_batch(self, *, has_orphans: bool, failures: int) -> list[Operation] | None:
        pause = RETRY_SECONDS[min(failures, len(RETRY_SECONDS)) - 1] if failures else BATCH_SECONDS
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing or has_orphans)
            if failures or not has_orphans:
                self._changed.wait_for(lambda: self._is_urgent or self._is_closing, pause)
            if self._is_closing:
                return None
            self._is_urgent = False
            batch, self._waiting = self._waiting, []
            self._is_sending = True
            return batch

    def _finish_batch(self, batch: list[Operation], *, is_sent: bool) -> None:
        with self._changed:
            self._is_sending = False
            if not is_sent:
                self._waiting[:0] = batch
            elif not self._waiting and not self._is_closing:
                self._spool.clear()
            self._changed.notify_all()


def open_mirror(places: Places, *, clock: Clock | None = None) -> RunMirror:
    """The mirror of a project; close it, or use it as a context."""
    return RunMirror(
        tracking_uri(places), artifact_root(places), spool_folder=spool_folder(places), clock=clock or SystemClock()
    )


class _Sender:
    """Applies folded operations through `MlflowClient`; used by the mirror's thread only."""

    def __init__(self, tracking_uri: str, artifact_root: Path | None, spool: Spool) -> None:
        self.run_ids: dict[str, str] = {}
        """Handle to MLflow's run id."""
        self._uri = tracking_uri
        self._artifact_root = artifact_root
        self._spool = spool
        self._client: MlflowClient | None = None
        self._experiments: dict[str, str] = {}
        self._new_parents: set[str] = set()
        self._bare: set[str] = set()
        """Runs (by handle) whose parameters and dataset version are not known to be in MLflow."""
        self._complaints: set[str] = set()

    def send(self, operations: tuple[Operation, ...] | list[Operation]) -> None:
        """Apply all of them; raises when MLflow cannot be reached, and may then be called again with the same."""
        changes = fold_operations(operations)
        if changes and self._client is None:
            self._client = open_client(self._uri, artifacts=self._artifact_root)
        for change in changes:
            self._guard(change, change, lambda change=change: self._apply(change))  # type: ignore[misc]

    def _guard(self, change: RunChange, what: object, action: Callable[[], object]) -> None:
        """What MLflow will never take (a wrong name, a deleted run) is put aside, so that the rest goes on."""
        from mlflow.exceptions import MlflowException  # loaded with the client

        try:
            action()
        except MlflowException as error:
            if error.error_code not in {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"}:
                raise
            if str(error.message) not in self._complaints:  # once, not once per epoch
                self._complaints.add(str(error.message))
                _LOG.warning("MLflow refuses part of run %s: %s", change.run, error.message)
            self._spool.reject(change.run, what=repr(what), reason=str(error.message))

    def _apply(self, change: RunChange) -> None:
        assert self._client is not None
        run_id, start = self._find_or_create(change)
        self._log_batch(change, run_id, params=start.body["params"] if start else {})
        if start is not None:
            self._log_dataset(run_id, start.body["dataset"])
            self._bare.discard(change.run)
        for path, folder in change.files:
            self._log_file(run_id, path, folder)
        if change.status is not None:
            status, at_us = change.status
            if status != "RUNNING":
                self._client.set_terminated(run_id, status, end_time=at_us // 1_000)

    def _log_batch(self, change: RunChange, run_id: str, *, params: Mapping[str, str]) -> None:
        """In one call, which is what MLflow's time goes by, when it takes all; else kind by kind."""
        from mlflow.entities import Metric, Param, RunTag  # loaded with the client
        from mlflow.exceptions import MlflowException

        assert self._client is not None
        log: Callable[..., object] = functools.partial(self._client.log_batch, run_id)
        kinds: dict[str, tuple[int, list[Any]]] = {
            "params": (100, [Param(name, value[:6_000]) for name, value in params.items()]),
            "metrics": (1_000, [Metric(name, value, at // 1_000, step) for name, value, step, at in change.metrics]),
            "tags": (100, [RunTag(name, value[:TAG_LETTERS]) for name, value in change.tags.items()]),
        }
        count = sum(len(items) for _, items in kinds.values())
        if 0 < count <= BATCH_ITEMS and all(len(items) <= limit for limit, items in kinds.values()):
            try:
                log(**{kind: items for kind, (_, items) in kinds.items()})
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
            else:
                return
        for kind, (limit, items) in kinds.items():
            self._send_each(change, items, limit=limit, send=lambda some, kind=kind: log(**{kind: some}))  # type: ignore[misc]

    def _send_each(
        self, change: RunChange, items: list[Any], *, limit: int, send: Callable[[list[Any]], object]
    ) -> None:
        """In batches of MLflow's limit; when one item of a batch is wrong, one by one, so that the others arrive."""
        from mlflow.exceptions import MlflowException  # loaded with the client

        for first in range(0, len(items), limit):
            some = items[first : first + limit]
            try:
                send(some)
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                for item in some:
                    self._guard(change, item, lambda item=item: send([item]))  # type: ignore[misc]

    def _log_file(self, run_id: str, path: Path, folder: str) -> None:
        assert self._client is not None
        if path.is_dir():
            self._client.log_artifacts(run_id, str(path), folder or None)
        elif path.is_file():  # else an earlier try of the same batch has sent it
            self._client.log_artifact(run_id, str(path), folder or None)
        self._spool.drop_files(path)

    def _find_or_create(self, change: RunChange) -> tuple[str, Operation | None]:
        """MLflow's run id, and the start when its parameters and dataset version are not known to be there."""
        assert self._client is not None
        if not change.run.startswith(HANDLE_PREFIX):
            return change.run, None
        if change.start is None:
            return self._find(change.run), None
        body = change.start.body
        experiment = self._open_experiment(body["product"])
        parent = self._find(body["parent"]) if body["parent"] else None
        is_new = False
        if change.run not in self.run_ids:
            run = None if body["parent"] in self._new_parents else self._search(change.run, [experiment])
            is_new = run is None
            if run is None or not run.inputs.dataset_inputs:
                self._bare.add(change.run)
            self.run_ids[change.run] = run.info.run_id if run else self._create(change, experiment, parent)
        run_id = self.run_ids[change.run]
        if not is_new:
            self._client.update_run(run_id, status="RUNNING")  # it may have ended before
        return run_id, change.start if change.run in self._bare else None

    def _create(self, change: RunChange, experiment: str, parent: str | None) -> str:
        """A new run, with the tags that were set since its start: they need no call of their own."""
        assert self._client is not None
        assert change.start is not None
        start, body = change.start, change.start.body
        tags = {
            "mlops.key": body["key"],
            "mlops.handle": start.run,
            "mlflow.source.type": "JOB",
            "mlflow.source.name": "mlops",
            "mlflow.user": _user(),
            **({"mlflow.parentRunId": parent} if parent else {}),
            **({"mlflow.source.git.commit": body["tags"]["mlops.commit"]} if "mlops.commit" in body["tags"] else {}),
            **_dataset_tags(body["dataset"]),
            **body["tags"],
            **{name: value[:TAG_LETTERS] for name, value in change.tags.items()},
        }
        run = self._client.create_run(experiment, start_time=start.at_us // 1_000, tags=tags, run_name=body["name"])
        change.tags.clear()
        if parent is None:
            self._new_parents.add(start.run)
        return run.info.run_id

    def _log_dataset(self, run_id: str, reference: Mapping[str, Any] | None) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag  # loaded with the client

        if reference is None:
            return
        assert self._client is not None
        dataset = Dataset(
            name=reference["name"],
            digest=reference["digest"].removeprefix("sha256:")[:36],  # MLflow's limit; the source holds all of it
            source_type="dvc",
            source=json.dumps({name: reference[name] for name in ("digest", "revision", "source")}),
            profile=json.dumps(reference["profile"]),
        )
        self._client.log_inputs(run_id, [DatasetInput(dataset, tags=[InputTag("mlflow.data.context", "training")])])

    def _open_experiment(self, product: str) -> str:
        assert self._client is not None
        if product not in self._experiments:
            found = self._client.get_experiment_by_name(product)
            if found is None:
                location = (self._artifact_root / product).as_uri() if self._artifact_root else None
                self._experiments[product] = self._client.create_experiment(
                    product,
                    artifact_location=location,
                    tags={"mlflow.experimentKind": "custom_model_development"},  # else the UI opens its page for LLMs
                )
            else:
                if found.lifecycle_stage == "deleted":
                    self._client.restore_experiment(found.experiment_id)
                self._experiments[product] = found.experiment_id
        return self._experiments[product]

    def _find(self, handle: str) -> str:
        """MLflow's id of a run that an earlier operation (perhaps of another process) began."""
        assert self._client is not None
        if handle not in self.run_ids:
            run = self._search(handle, [experiment.experiment_id for experiment in self._client.search_experiments()])
            if run is None:
                from mlflow.exceptions import MlflowException  # loaded with the client
                from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

                raise MlflowException(f"no run {handle} in MLflow", RESOURCE_DOES_NOT_EXIST)
            self.run_ids[handle] = run.info.run_id
        return self.run_ids[handle]

    def _search(self, handle: str, experiments: list[str]) -> Any:
        assert self._client is not None
        found = self._client.search_runs(experiments, f"tags.`mlops.handle` = '{handle}'", max_results=1)
        return found[0] if found else None


def find_run_id(client: MlflowClient, run_id: str) -> str | None:
    """MLflow's run id of a handle (or of a run id), in whichever experiment it lies."""
    if not run_id.startswith(HANDLE_PREFIX):
        return run_id
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`mlops.handle` = '{run_id}'", max_results=1)
    return found[0].info.run_id if found else None


def _dataset_body(dataset: DatasetReference | None) -> dict[str, Any] | None:
    if dataset is None:
        return None
    return {
        "name": dataset.name,
        "digest": dataset.digest,
        "revision": dataset.revision,
        "source": dataset.source,
        "profile": dict(dataset.profile),
    }


def _dataset_tags(dataset: Mapping[str, Any] | None) -> dict[str, str]:
    """The digests in full, to search by."""
    named = {"mlops.manifest_digest": "digest", "mlops.dvc_revision": "revision"}
    return {tag: dataset[field] for tag, field in named.items() if dataset and dataset[field]}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "mlops"
