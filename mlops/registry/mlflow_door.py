"""The way to MLflow: where its store is, its environment, and a client. Imports MLflow only when a client is opened.

Leaves to others: what is written (mlflow_runs.py, mlflow_models.py), the UI process (mlflow_ui.py).
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from mlops.errors import ProvenanceError
from mlops.places import Places

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A caller's time-out must mean something: MLflow's default is 7 tries of 120 s each.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def tracking_uri(places: Places) -> str:
    """`MLFLOW_TRACKING_URI`, or SQLite below `.mlops/mlflow/`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{places.mlflow_folder.resolve() / 'mlflow.sqlite'}"


def artifact_root(places: Places) -> Path | None:
    """Where artefacts go when the store is local; a tracking server decides itself (None)."""
    return places.mlflow_folder.resolve() / "artifacts" if is_local(tracking_uri(places)) else None


def spool_folder(places: Places) -> Path:
    """Operations that MLflow has not taken yet."""
    return places.mlflow_folder / "spool"


def is_local(uri: str) -> bool:
    """Whether the store is a database that this process opens itself."""
    return uri.startswith(("sqlite:", "postgresql"))


def has_store(uri: str) -> bool:
    """False for a local store that nothing has written yet: reading it needs neither MLflow nor a database."""
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()


def prepare_environment() -> None:
    """Telemetry off, bounded waiting; before MLflow is imported. What the user has set stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for logger in ("alembic", "mlflow.store.db.utils"):  # "Creating initial MLflow database tables..."
        logging.getLogger(logger).setLevel(logging.WARNING)


def open_client(uri: str, *, artifacts: Path | None) -> MlflowClient:
    """A client for tracking and models, its store made when absent.

    Raises:
        ProvenanceError: The store cannot be opened.
    """
    prepare_environment()
    from mlflow import MlflowClient  # costs 1.3 s

    try:
        if uri.startswith("sqlite:///"):
            _make_store(Path(uri.removeprefix("sqlite:///")), uri, artifacts)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except Exception as error:  # MLflow lets its drivers' exceptions through
        raise ProvenanceError(
            f"MLflow store {uri} cannot be opened: {error}",
            hint="check MLFLOW_TRACKING_URI, the disk, and whether an older mlflow wrote it",
        ) from error


def _make_store(path: Path, uri: str, artifacts: Path | None) -> None:
    """Create the database once, alone: two processes that migrate an empty one at the same time damage it."""
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # costs 1.3 s

    path.parent.mkdir(parents=True, exist_ok=True)
    root = artifacts or path.parent / "artifacts"
    with FileLock(f"{path}.lock"):
        if path.exists():
            return
        aside = path.with_name(f".{path.name}.new")
        aside.unlink(missing_ok=True)
        store = SqlAlchemyStore(f"sqlite:///{aside}", root.as_uri())  # type: ignore[no-untyped-call]
        store.engine.dispose()
        aside.replace(path)
