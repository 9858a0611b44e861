"""What a sweep tells about its runs, as an interface with an in-memory implementation, and as plain operations.

A run is named by a *handle* that follows from its key alone, so that a caller never waits for MLflow to learn it.
Leaves to others: MLflow (mlflow_runs.py), surviving a crash (spool.py), the record of trials (the ledger).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
HANDLE_PREFIX = "mirror-"


@dataclass(frozen=True)
class DatasetReference:
    """The dataset version a run reads."""

    name: str
    digest: str
    """Manifest digest, `sha256:…`."""
    revision: str = ""
    """DVC digest (`<md5>.dir`) of the version."""
    source: str = ""
    """Where it lies, for people: `datasets.dvc#datasets/income`."""
    profile: Mapping[str, Any] = field(default_factory=dict)
    """Small facts such as numbers of rows."""


class Mirror(Protocol):
    """Takes what happens in a sweep; nothing here waits for MLflow but `flush`, `find_mlflow_run` and `close`."""

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
        """Begin (or, with a key seen before, go on with) the run of a sweep; gives its handle.

        Args:
            name: Shown in the UI.
            key: Identity over crashes and repetitions, unique among all runs.
            tags: `mlops.commit` becomes MLflow's own commit tag too; the trials inherit all `mlops.*` tags.
            params: Shown as parameters.
            dataset: Logged as a dataset input, here and on each trial.
            product: The MLflow experiment; default `mlops`.
            at_us: When it began; default now.
        """
        ...

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
        """Begin (or go on with) a child run of a sweep that this mirror started; gives its handle."""
        ...

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, step: int, at_us: int | None = None) -> None:
        """Numbers at a step; NaN and infinities are shown as such. Said again with the same time they stay once."""
        ...

    def log_file(self, run_id: str, path: Path, *, folder: str = "") -> None:
        """A file, or a folder with all it holds, as artefact below `folder`; it may be deleted right after the call."""
        ...

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Add or replace tags."""
        ...

    def end(self, run_id: str, status: Status, *, at_us: int | None = None) -> None:
        """Say how the run ended."""
        ...

    def find_mlflow_run(self, run_id: str, *, timeout_seconds: float = 30.0) -> str | None:
        """MLflow's own run id of a handle, or None when MLflow did not answer in time."""
        ...

    def flush(self, *, timeout_seconds: float = 30.0) -> bool:
        """Wait until everything said so far is in MLflow; False when it is not in time."""
        ...

    def close(self, *, timeout_seconds: float = 30.0) -> None:
        """Flush and stop; what could not be sent stays in the spool for the next mirror."""
        ...


def make_handle(key: str) -> str:
    """The handle of a key: `mirror-<32 hex digits>`."""
    return HANDLE_PREFIX + hashlib.sha256(key.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Operation:
    """One thing said about one run; applying it twice is the same as once."""

    kind: Literal["start", "metrics", "file", "tags", "end"]
    run: str
    """Handle, or an MLflow run id."""
    at_us: int
    body: dict[str, Any]

    def to_line(self) -> str:
        """One line of JSON (NaN and infinities as Python spells them)."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str) -> Operation:
        """Back from `to_line`.

        Raises:
            ValueError: The line is damaged, for instance cut off by a crash.
        """
        try:
            return cls(**json.loads(line))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not an operation: {line[:80]!r}") from error


@dataclass
class RunChange:
    """All operations on one run, folded, in the order in which they are applied: start, batch, files, end."""

    run: str
    start: Operation | None = None
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    """(name, value, step, at_us)"""
    tags: dict[str, str] = field(default_factory=dict)
    files: list[tuple[Path, str]] = field(default_factory=list)
    """(path, artefact folder)"""
    status: tuple[str, int] | None = None
    """(status, at_us)"""


def fold_operations(operations: Iterable[Operation]) -> tuple[RunChange, ...]:
    """One change per run, runs in the order in which they were first named; a later status wins."""
    changes: dict[str, RunChange] = {}
    for operation in operations:
        change = changes.setdefault(operation.run, RunChange(run=operation.run))
        body = operation.body
        if operation.kind == "start":
            change.start, change.status = operation, ("RUNNING", operation.at_us)
        elif operation.kind == "metrics":
            change.metrics.extend(
                (name, float(value), int(body["step"]), operation.at_us) for name, value in body["metrics"].items()
            )
        elif operation.kind == "tags":
            change.tags.update(body["tags"])
        elif operation.kind == "file":
            change.files.append((Path(body["path"]), body["folder"]))
        else:
            change.status = (body["status"], operation.at_us)
    return tuple(changes.values())


@dataclass
class MemoryRun:
    """One run as the in-memory mirror keeps it."""

    name: str
    key: str
    parent: str | None
    tags: dict[str, str]
    params: dict[str, str]
    dataset: DatasetReference | None
    product: str
    metrics: list[tuple[str, float, int]] = field(default_factory=list)
    times: set[tuple[str, int, int | None]] = field(default_factory=set)
    """Name, step and time of what is in `metrics`: the same number of the same moment is kept once, as by MLflow."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Artefact path to content."""
    status: str = "RUNNING"


class MemoryMirror:
    """Keeps runs in memory: for tests, and where no MLflow is wanted."""

    def __init__(self) -> None:
        self.runs: dict[str, MemoryRun] = {}
        """Handle to run."""

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
        return self._start(name, key=key, tags=tags, params=params, parent=None, dataset=dataset, product=product)

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
        parent = self.runs[parent_run_id]
        inherited = {**inherited_tags(parent.tags), **tags}
        return self._start(
            name,
            key=key,
            tags=inherited,
            params=params,
            parent=parent_run_id,
            dataset=parent.dataset,
            product=parent.product,
        )

    def _start(
        self,
        name: str,
        *,
        key: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        parent: str | None,
        dataset: DatasetReference | None,
        product: str,
    ) -> str:
        handle = make_handle(key)
        run = self.runs.setdefault(
            handle,
            MemoryRun(name=name, key=key, parent=parent, tags={}, params={}, dataset=dataset, product=product),
        )
        run.tags.update(tags)
        for param, value in params.items():
            run.params.setdefault(param, str(value))
        run.status = "RUNNING"
        return handle

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, step: int, at_us: int | None = None) -> None:
        """See `Mirror`."""
        run = self.runs[run_id]
        for name, value in metrics.items():
            if at_us is None or (name, step, at_us) not in run.times:
                run.times.add((name, step, at_us))
                run.metrics.append((name, float(value), step))

    def log_file(self, run_id: str, path: Path, *, folder: str = "") -> None:
        """See `Mirror`."""
        for inner in [path] if path.is_file() else sorted(path.rglob("*")):
            if inner.is_file():
                name = path.name if inner == path else inner.relative_to(path).as_posix()
                self.runs[run_id].files[f"{folder}/{name}".lstrip("/")] = inner.read_bytes()

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """See `Mirror`."""
        self.runs[run_id].tags.update(tags)

    def end(self, run_id: str, status: Status, *, at_us: int | None = None) -> None:
        """See `Mirror`."""
        self.runs[run_id].status = status

    def find_mlflow_run(self, run_id: str, *, timeout_seconds: float = 30.0) -> str | None:
        """The handle itself without its prefix, so that it looks like MLflow's."""
        return run_id.removeprefix(HANDLE_PREFIX) if run_id in self.runs else None

    def flush(self, *, timeout_seconds: float = 30.0) -> bool:
        """Nothing waits."""
        return True

    def close(self, *, timeout_seconds: float = 30.0) -> None:
        """Nothing to stop."""


def inherited_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags of a sweep that its trials carry too."""
    return {name: value for name, value in tags.items() if name.startswith("mlops.") and name not in _OWN_TAGS}


_OWN_TAGS = frozenset({"mlops.key", "mlops.handle"})
