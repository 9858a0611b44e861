"""Which products have to be baked again after a change: `mlops release --changed BASE..HEAD`.

Wider than a memo key on purpose: a product named here whose inputs are in truth the same is released in seconds by
reusing every step. Leaves to others: git (mlops/provenance/git_repository.py) and the release itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import yaml

from mlops.places import Places
from mlops.provenance.git_repository import GitRepository, open_repository
from mlops.training.spec import load_sweep_spec

SHARED_INPUTS = ("requirements.lock", "mlops/*")
"""Changes here concern every product."""
PRODUCT_INPUTS = (
    "training/{product}.py",
    "training/{product}.yaml",
    "tests/trainers/{product}/*",
    "evaluation/{product}.yaml",
    "evaluation/checks/*",
    "evaluation/incidents/{product}*",
    "deploy/{product}.yaml",
)
DATASET_INPUTS = ("datasets/{dataset}.yaml",)


def plan_changed_products(
    datasets: Mapping[str, str],
    *,
    changed_files: Iterable[str],
    pins_before: Mapping[str, str],
    pins_after: Mapping[str, str],
) -> list[str]:
    """Products whose inputs changed, sorted.

    Args:
        datasets: Product to the dataset it is trained on.
        changed_files: Paths below the project root.
        pins_before: Path of each `out` of datasets.dvc to its digest, at the base commit.
        pins_after: The same at the head commit.
    """
    files = list(changed_files)
    found = []
    for product, dataset in sorted(datasets.items()):
        patterns = [
            *SHARED_INPUTS,
            *(pattern.format(product=product) for pattern in PRODUCT_INPUTS),
            *(pattern.format(dataset=dataset) for pattern in DATASET_INPUTS),
        ]
        is_hit = any(fnmatchcase(path, pattern) for path in files for pattern in patterns)
        pin = f"datasets/{dataset}"
        if is_hit or pins_before.get(pin) != pins_after.get(pin):
            found.append(product)
    return found


def find_changed_products(places: Places, *, base: str, head: str) -> list[str]:
    """The same, read from git and the sweep specs.

    Args:
        places: The project.
        base: Zeros, as a first push names what was before it, when there is no commit: then everything changed.
        head: The commit after.

    Raises:
        ProvenanceError: No such commit.
        ProjectError: A sweep spec is broken.
    """
    if set(base) == {"0"}:
        return list(places.products())
    repository = open_repository(places.root)
    datasets = {name: load_sweep_spec(places.sweep_file(name)).dataset for name in places.products()}
    return plan_changed_products(
        datasets,
        changed_files=repository.changed_files(base, head),
        pins_before=_read_pins(repository, base),
        pins_after=_read_pins(repository, head),
    )


def _read_pins(repository: GitRepository, revision: str) -> dict[str, str]:
    if "datasets.dvc" not in repository.list_files("datasets.dvc", revision=revision):
        return {}
    content = yaml.safe_load(repository.read_file("datasets.dvc", revision=revision)) or {}
    return {str(out["path"]): str(out.get("md5", "")) for out in content.get("outs") or []}
