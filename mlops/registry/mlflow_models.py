"""Model versions in MLflow: a plain model folder (ONNX, safetensors, contract) with a signature, tags and aliases.

A version is made once per candidate digest; nothing here is pickled, and every MLflow tool can load what is written.
Leaves to others: whether a candidate may be registered (the gate), and the attestation of it (mlops/provenance).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from filelock import FileLock

from mlops.clock import render_time
from mlops.errors import ProvenanceError
from mlops.provenance.digest import digest_folder, hex_of
from mlops.registry.mlflow_door import has_store, open_client, prepare_environment
from mlops.registry.mlflow_runs import find_run_id

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATE_TAG = "mlops.candidate"
LATEST = "latest"
"""MLflow reserves this alias for the newest version; as only what passed the gate is registered, it means just that."""


@dataclass(frozen=True)
class ModelVersion:
    """A registered, immutable version of a product."""

    product: str
    number: int
    run_id: str
    """MLflow's run id of the winning trial."""
    tags: dict[str, str]
    source: str
    """URI of the model folder."""
    aliases: tuple[str, ...] = ()
    created_us: int = 0

    @property
    def candidate(self) -> str:
        """Digest of the candidate it was made of."""
        return self.tags.get(CANDIDATE_TAG, "")

    @property
    def source_folder(self) -> Path:
        """The model folder on this machine.

        Raises:
            ProvenanceError: It lies on a tracking server; use `ModelRegistry.download`.
        """
        parsed = urlparse(self.source)
        if parsed.scheme not in {"", "file"}:
            raise ProvenanceError(
                f"{self.product} version {self.number} lies at {self.source}",
                hint=f"fetch it with `mlops model get {self.product}@{self.number} --to FOLDER`",
            )
        return Path(unquote(parsed.path))

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "product": self.product,
            "number": self.number,
            "aliases": list(self.aliases),
            "candidate": self.candidate,
            "run_id": self.run_id,
            "source": self.source,
            "created": render_time(self.created_us),
            "tags": self.tags,
        }


class ModelRegistry:
    """Registered models of one MLflow store.

    Args:
        tracking_uri: From `mlflow_door.tracking_uri`.
        artifact_root: From `mlflow_door.artifact_root`; None for a tracking server.
    """

    def __init__(self, tracking_uri: str, artifact_root: Path | None = None) -> None:
        self._uri = tracking_uri
        self._artifact_root = artifact_root

    @cached_property
    def _client(self) -> MlflowClient:
        return open_client(self._uri, artifacts=self._artifact_root)

    def register_version(
        self,
        product: str,
        *,
        run_id: str,
        candidate_folder: Path,
        contract: Mapping[str, Any],
        tags: Mapping[str, str],
        gate_report: Path | None,
    ) -> ModelVersion:
        """Make a version of a candidate, or give the one that was made of it before.

        Args:
            product: Name of the registered model.
            run_id: The winning trial: MLflow's run id, or a mirror's handle.
            candidate_folder: `model.onnx`, `weights.safetensors`, `contract.json`, …
            contract: Content of `contract.json`; gives signature and dataset tags.
            tags: Added to the version, for instance the gate's digest.
            gate_report: File or folder, logged to the run as artefact `gate/`.

        Raises:
            ProvenanceError: MLflow cannot be used, does not know the run, or the candidate is not complete.
        """
        candidate = digest_folder(candidate_folder)
        with self._alone(), _translated(f"register {product}"):
            mlflow_run = self._require_run(run_id)
            if gate_report is not None:
                log = self._client.log_artifacts if gate_report.is_dir() else self._client.log_artifact
                log(mlflow_run.info.run_id, str(gate_report), "gate")
            found = self._find_candidate(product, candidate)
            if found is not None:
                return found
            folder = f"model-{hex_of(candidate)[:12]}"
            with tempfile.TemporaryDirectory(prefix="mlops-model-") as scratch:
                target = Path(scratch) / folder
                write_model_folder(target, candidate_folder, contract=contract, run_id=mlflow_run.info.run_id)
                self._client.log_artifacts(mlflow_run.info.run_id, str(target), folder)
            self._ensure_product(product)
            version = self._client.create_model_version(
                product,
                source=f"{mlflow_run.info.artifact_uri}/{folder}",
                run_id=mlflow_run.info.run_id,
                tags={CANDIDATE_TAG: candidate, **_dataset_tags(contract), **{k: str(v) for k, v in tags.items()}},
            )
            self._client.set_tag(mlflow_run.info.run_id, CANDIDATE_TAG, candidate)
            self._client.set_tag(mlflow_run.info.run_id, "mlops.model_version", f"{product}@{version.version}")
            return self._to_version(version, newest=int(version.version), aliases={})

    def find_version(self, product: str, number_or_alias: int | str) -> ModelVersion | None:
        """By number (`3`) or alias (`latest`, `champion`).

        Raises:
            ProvenanceError: MLflow cannot be used.
        """
        wanted = str(number_or_alias)
        for version in self.list_versions(product):
            if wanted == str(version.number) or wanted in version.aliases:
                return version
        return None

    def list_versions(self, product: str) -> tuple[ModelVersion, ...]:
        """All versions, newest first; none for an unknown product.

        Raises:
            ProvenanceError: MLflow cannot be used.
        """
        if not has_store(self._uri):
            return ()
        with _translated(f"list versions of {product}"):
            found: list[Any] = []
            token: str | None = None
            while True:
                page = self._client.search_model_versions(f"name = '{product}'", max_results=1_000, page_token=token)
                found.extend(page)
                token = page.token
                if not token:
                    break
            aliases = self._client.get_registered_model(product).aliases if found else {}
            newest = max((int(version.version) for version in found), default=0)
            versions = [self._to_version(version, newest=newest, aliases=aliases) for version in found]
        return tuple(sorted(versions, key=lambda version: -version.number))

    def list_products(self) -> tuple[str, ...]:
        """Names of registered models.

        Raises:
            ProvenanceError: MLflow cannot be used.
        """
        if not has_store(self._uri):
            return ()
        with _translated("list models"):
            return tuple(sorted(model.name for model in self._client.search_registered_models(max_results=1_000)))

    def set_alias(self, product: str, alias: str, *, number: int) -> None:
        """Point an alias to a version.

        Raises:
            ProvenanceError: No such version, or `latest` for one that is not the newest: MLflow gives it by itself.
        """
        versions = self.list_versions(product)
        if not any(version.number == number for version in versions):
            raise ProvenanceError(f"{product} has no version {number}", hint=f"see `mlops model list {product}`")
        if alias == LATEST:
            if versions[0].number != number:
                raise ProvenanceError(
                    f"{product}@latest is version {versions[0].number}, the newest, and cannot be {number}",
                    hint="MLflow keeps `latest` for the newest version; name the version by its number",
                )
            return
        with _translated(f"name {product} version {number} {alias}"):
            self._client.set_registered_model_alias(product, alias, str(number))

    def download(self, version: ModelVersion, *, target: Path) -> Path:
        """Copy the model folder to `target`, which must not exist.

        Raises:
            ProvenanceError: `target` exists or cannot be written, or the artefacts cannot be fetched.
        """
        if target.exists():
            raise ProvenanceError(f"{target} exists", hint="name a folder that does not exist yet")
        run_folder = version.source.rstrip("/").rpartition("/")[2]
        with _translated(f"fetch {version.product} version {version.number}"), tempfile.TemporaryDirectory() as scratch:
            fetched = self._client.download_artifacts(version.run_id, run_folder, scratch)
            try:
                shutil.copytree(fetched, target)
            except OSError as error:
                hint = "name a folder that you may write and that does not exist yet"
                raise ProvenanceError(f"{target} cannot be written: {error.strerror or error}", hint=hint) from error
        return target

    def _require_run(self, run_id: str) -> Any:
        found = find_run_id(self._client, run_id)
        if found is None:
            raise ProvenanceError(
                f"MLflow store {self._uri} does not hold run {run_id}",
                hint="if MLflow was away during the sweep, run the command again: what it lacks is sent first",
            )
        return self._client.get_run(found)

    def _find_candidate(self, product: str, candidate: str) -> ModelVersion | None:
        return next((version for version in self.list_versions(product) if version.candidate == candidate), None)

    def _ensure_product(self, product: str) -> None:
        from mlflow.exceptions import MlflowException  # loaded with the client

        try:
            self._client.create_registered_model(product)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _to_version(self, version: Any, *, newest: int, aliases: Mapping[str, str]) -> ModelVersion:
        """`aliases` comes from the registered model: a search for versions leaves it out."""
        number = int(version.version)
        named = sorted(alias for alias, target in aliases.items() if int(target) == number)
        return ModelVersion(
            product=version.name,
            number=number,
            run_id=version.run_id or "",
            tags=dict(sorted(version.tags.items())),
            source=version.source,
            aliases=(*named, *((LATEST,) if number == newest else ())),
            created_us=int(version.creation_timestamp) * 1_000,
        )

    def _alone(self) -> Any:
        """Registrations of one local store happen one after the other, so that a candidate has one version."""
        if self._artifact_root is None:
            return nullcontext()
        self._artifact_root.mkdir(parents=True, exist_ok=True)
        return FileLock(self._artifact_root / ".registration.lock")


def write_model_folder(target: Path, candidate_folder: Path, *, contract: Mapping[str, Any], run_id: str) -> None:
    """A candidate as an MLflow model folder that `mlflow.onnx` and `mlflow.pyfunc` load; only files, no pickle.

    A model that does not export has no flavour: MLflow's own for torch is a pickle. `mlops model get` fetches it.

    `mlflow.onnx.save_model` is not used: it names external data by uuid, so equal candidates would differ.

    Raises:
        ProvenanceError: The candidate lacks `model.onnx` or `weights.safetensors`.
    """
    origin = candidate_folder / "params.json"
    has_onnx = not origin.is_file() or json.loads(origin.read_bytes()).get("export", "onnx") == "onnx"
    for name in (*(("model.onnx",) if has_onnx else ()), "weights.safetensors", "contract.json"):
        if not (candidate_folder / name).is_file():
            raise ProvenanceError(f"candidate {candidate_folder} has no {name}", hint="export it again")
    import onnx  # costs 0.3 s
    import onnxruntime  # costs 0.1 s
    from mlflow.models import Model  # loaded with the client

    shutil.copytree(candidate_folder, target, ignore=shutil.ignore_patterns("__pycache__"))
    requirements = f"onnx=={onnx.__version__}\nonnxruntime=={onnxruntime.__version__}\n"
    (target / "requirements.txt").write_text(requirements if has_onnx else "torch\nsafetensors\n", encoding="utf-8")
    model = Model(
        artifact_path=target.name, run_id=run_id, signature=_signature(contract), metadata={"contract": dict(contract)}
    )
    if has_onnx:
        model.add_flavor(
            "onnx", onnx_version=onnx.__version__, data="model.onnx", providers=["CPUExecutionProvider"], code=None
        )
        model.add_flavor("python_function", loader_module="mlflow.onnx", data="model.onnx", code=None)
    model.save(str(target / "MLmodel"))


def _signature(contract: Mapping[str, Any]) -> Any:
    import numpy  # loaded with the client
    from mlflow.models import ModelSignature  # loaded with the client
    from mlflow.types import Schema, TensorSpec

    def schema(columns: list[Mapping[str, Any]]) -> Any:
        return Schema(
            [TensorSpec(numpy.dtype(column["dtype"]), (-1, *column["shape"]), column["name"]) for column in columns]
        )

    return ModelSignature(inputs=schema(contract["inputs"]), outputs=schema(contract["outputs"]))


def _dataset_tags(contract: Mapping[str, Any]) -> dict[str, str]:
    dataset = contract.get("dataset") or {}
    return {f"mlops.dataset_{name}": str(dataset[name]) for name in ("name", "digest") if name in dataset}


@contextmanager
def _translated(what: str) -> Iterator[None]:
    prepare_environment()
    from mlflow.exceptions import MlflowException  # loaded with the client

    try:
        yield
    except MlflowException as error:
        raise ProvenanceError(
            f"cannot {what} in MLflow: {error.message}", hint="is the tracking server of MLFLOW_TRACKING_URI up?"
        ) from error
