"""Where things lie in a project: one table of paths, so that no room invents its own.

The project root is the nearest ancestor that holds `datasets.dvc`. Everything the machine writes is below `.mlops/`
(DESIGN §4), but for what it commits: `datasets.dvc` and `deploy/desired/`.
Leaves to others: reading and writing (each room), opening the ledger (mlops/project).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlops.errors import ProjectError


@dataclass(frozen=True)
class Places:
    """Paths of one project; nothing here touches the disk."""

    root: Path

    @property
    def datasets_dvc(self) -> Path:
        """Pins every dataset, one `out` each."""
        return self.root / "datasets.dvc"

    def dataset_folder(self, dataset: str) -> Path:
        """Workspace folder of a dataset's shards and its `dataset.yaml`."""
        return self.root / "datasets" / dataset

    def trainer_file(self, product: str) -> Path:
        """The trainer: `model(params)` and `train(worker, params)`."""
        return self.root / "training" / f"{product}.py"

    def sweep_file(self, product: str) -> Path:
        """The sweep spec."""
        return self.root / "training" / f"{product}.yaml"

    def policy_file(self, product: str) -> Path:
        """The gate policy."""
        return self.root / "evaluation" / f"{product}.yaml"

    def deploy_file(self, product: str) -> Path:
        """Image and consumers of a product."""
        return self.root / "deploy" / f"{product}.yaml"

    @property
    def budgets_folder(self) -> Path:
        """One YAML per budget node, and rates.yaml."""
        return self.root / "budgets"

    @property
    def lock_file(self) -> Path:
        """Locked Python dependencies."""
        return self.root / "requirements.lock"

    @property
    def state(self) -> Path:
        """All that the machine writes."""
        return self.root / ".mlops"

    @property
    def ledger_file(self) -> Path:
        """SQLite ledger, used unless `MLOPS_LEDGER` names another database."""
        return self.state / "ledger.sqlite"

    @property
    def mlflow_folder(self) -> Path:
        """`mlflow.sqlite` and `artifacts/`."""
        return self.state / "mlflow"

    @property
    def keys_folder(self) -> Path:
        """Private keys, mode 0700; no training worker can read it."""
        return self.state / "keys"

    @property
    def downloads(self) -> Path:
        """Content store of downloaded files, `sha256/<hex>`."""
        return self.state / "store"

    @property
    def dvc_remote(self) -> Path:
        """The project's local DVC remote."""
        return self.state / "dvc-remote"

    @property
    def checkpoints(self) -> Path:
        """`<sweep>/<trial>/`: safetensors and JSON."""
        return self.state / "checkpoints"

    @property
    def candidates(self) -> Path:
        """`<hex digest>/`: exported candidates, immutable."""
        return self.state / "candidates"

    @property
    def evidence(self) -> Path:
        """Gate results and other evidence, `<hex digest>/`."""
        return self.state / "evidence"

    @property
    def images(self) -> Path:
        """OCI image layout with every built image."""
        return self.state / "images"

    @property
    def restore_marker(self) -> Path:
        """Lies here while a restore is under way: nothing serves until who withdrew since is taken out again."""
        return self.state / "restore-unfinished.json"

    @property
    def serving_state(self) -> Path:
        """Running containers, proxy configuration and sockets of this machine."""
        return self.state / "serving"

    @property
    def cache(self) -> Path:
        """What can be rebuilt: decoded shards, lists of packages."""
        return self.state / "cache"

    def products(self) -> tuple[str, ...]:
        """Names of products: each has a sweep spec."""
        return tuple(sorted(path.stem for path in (self.root / "training").glob("*.yaml")))


def require_no_namesake(root: Path) -> None:
    """No package of the project is called as this one: processes that start in its folder would import it instead.

    A clone of this repository is a project, too, and its package is this one.

    Raises:
        ProjectError: There is one.
    """
    if (root / "mlops" / "cli" / "start.py").is_file():
        return
    for name in ("mlops/__init__.py", "mlops.py"):
        if (root / name).is_file():
            raise ProjectError(
                f"{name} has the name of the installed package, and processes that start here would import it",
                hint=f"rename {name.removesuffix('/__init__.py')}",
            )


def find_root(start: Path) -> Path:
    """The nearest ancestor of `start` that holds `datasets.dvc`.

    Raises:
        ProjectError: There is none.
    """
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / "datasets.dvc").is_file():
            return folder
    raise ProjectError(
        f"{start.resolve()} is not inside a project: no datasets.dvc here or above",
        hint="change into a project folder, or make one with `mlops init`",
    )
