"""`mlops init`: a new project from the template, with a tiny generated dataset that is imported at once.

All files are written aside and moved into place together, so a failure leaves nothing half-written.
Leaves to others: the import itself (mlops/datasets), examining the result (doctor.py), git commits (people).
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import math
import random
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mlops.datasets.locations import DATASETS_IGNORED, DVC_CONFIG, DVC_IGNORED
from mlops.errors import EnvironmentFault, ProjectError
from mlops.places import Places, find_root

NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
_PLACEHOLDER = "__PRODUCT__"
_RESERVED = frozenset({"rates", "roles", "erasure", "environments", "consumers", "desired", "checks", "incidents"})
_ROWS = 8_000
_RENAMED = {
    "datasets_dvc": "datasets.dvc",
    "gitignore": ".gitignore",
    "workflows/release.yml": ".github/workflows/release.yml",
    "training/product.py.template": "training/product.py",
}
"""Template files whose own names would mean something inside this package."""


@dataclass(frozen=True)
class Scaffold:
    """What a new project consists of."""

    root: Path
    product: str
    files: tuple[str, ...]
    """Paths relative to `root`."""


def plan_scaffold(root: Path, *, product: str) -> dict[str, str]:
    """Relative path to content of every file of a new project.

    Raises:
        ProjectError: The name cannot be a product's.
    """
    if not NAME.fullmatch(product) or product in _RESERVED:
        raise ProjectError(
            f"{product!r} cannot be a product's name",
            hint="use up to 31 lower-case letters, digits and underscores, beginning with a letter, such as `churn`",
        )
    files = {
        ".dvc/config": DVC_CONFIG,
        ".dvc/.gitignore": DVC_IGNORED,
        "datasets/.gitignore": DATASETS_IGNORED,
        f"datasets/{product}.csv": generate_rows(seed=20_261_122),
        "requirements.lock": render_lock(),
    }
    template = importlib.resources.files("mlops.project") / "template"
    for relative, file in _walk(template, ""):
        name = _RENAMED.get(relative, relative)
        name = re.sub(r"(^|/)product(\.\w+)$", rf"\g<1>{product}\g<2>", name)
        files[name] = file.read_text(encoding="utf-8").replace(_PLACEHOLDER, product)
    return dict(sorted(files.items()))


def write_scaffold(root: Path, *, product: str) -> Scaffold:
    """Write a new project.

    Raises:
        ProjectError: The name is not one, `root` holds files that would be overwritten, or lies inside a project.
        EnvironmentFault: `root` cannot be written.
    """
    files = plan_scaffold(root, product=product)
    _require_free(root, files)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mlops-init-", dir=root) as scratch:
            for name, content in files.items():
                path = Path(scratch) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content, encoding="utf-8")
            for name in files:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
            # datasets.dvc last: it is what makes the folder a project
            for name in sorted(files, key=lambda name: name == "datasets.dvc"):
                (Path(scratch) / name).replace(root / name)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write {root}: {error.strerror}", hint="free disk space or fix rights, then run it again"
        ) from error
    return Scaffold(root=root, product=product, files=tuple(files))


def import_scaffold(scaffold: Scaffold) -> str:
    """Import the generated dataset and pin its version; returns the digest.

    Raises:
        DatasetError: It cannot be stored.
    """
    from mlops.datasets.importing import import_dataset  # costs 0.5 s: pyarrow

    return import_dataset(Places(scaffold.root), scaffold.product).version.digest


def generate_rows(*, seed: int) -> str:
    """A CSV of customers; whether one leaves follows from months, spend, calls and plan, and never from the region."""
    source = random.Random(seed)  # noqa: S311 - an example's data, not a secret
    lines = ["customer,months,spend,calls,plan,region,leaves"]
    for number in range(_ROWS):
        months = source.randint(0, 120)
        spend = round(min(500.0, max(0.0, source.gauss(60, 25))), 2)
        calls = min(20, int(source.expovariate(0.5)))
        plan = source.choices(["basic", "plus", "pro", ""], weights=[5, 3, 2, 0.2])[0]
        region = source.choice(["north", "south"])
        score = 1.2 - months / 24 + calls * 0.45 - (0.9 if plan == "pro" else 0.0) + (spend - 60) / 60
        leaves = "yes" if source.random() < 1 / (1 + math.exp(-score)) else "no"
        lines.append(f"c{number:05d},{months},{spend},{calls},{plan},{region},{leaves}")
    return "\n".join(lines) + "\n"


def render_lock() -> str:
    """The installed versions of everything `mlops` needs, as a lock that plain pip installs."""
    found: dict[str, str] = {}
    waiting = ["mlops"]
    while waiting:
        try:
            distribution = importlib.metadata.distribution(waiting.pop())
        except importlib.metadata.PackageNotFoundError:
            continue  # a marker left it out here
        for text in distribution.requires or ():
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
                continue
            try:
                found[name] = importlib.metadata.version(name).partition("+")[0]
            except importlib.metadata.PackageNotFoundError:
                continue
            waiting.append(name)
    lines = [f"{name}=={version}" for name, version in sorted(found.items())]
    return "# Made by `mlops init` from what was installed; installs with plain pip.\n" + "\n".join(lines) + "\n"


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for item in folder.iterdir():
        if item.is_dir():
            if item.name != "__pycache__":
                yield from _walk(item, f"{prefix}{item.name}/")
        else:
            yield f"{prefix}{item.name}", item


def _require_free(root: Path, files: dict[str, str]) -> None:
    if root.exists() and not root.is_dir():
        raise ProjectError(f"{root} is a file", hint="name a folder")
    existing = tuple(name for name in files if (root / name).exists())
    if existing:
        raise ProjectError(
            f"{root} already holds {len(existing)} of the files that would be written",
            items=existing,
            hint="name an empty or a new folder; nothing was written",
        )
    try:
        outer = find_root(root if root.is_dir() else root.parent)
    except ProjectError:
        return
    raise ProjectError(f"{root} lies inside the project {outer}", hint="make the new project outside of it")


def remove_scaffold(scaffold: Scaffold) -> None:
    """Take back what `write_scaffold` wrote, and the state that an import began."""
    for name in scaffold.files:
        (scaffold.root / name).unlink(missing_ok=True)
    for folder in (".mlops", f"datasets/{scaffold.product}"):
        shutil.rmtree(scaffold.root / folder, ignore_errors=True)
    inner = {parent for name in scaffold.files for parent in Path(name).parents} - {Path()}
    for relative in sorted(inner, key=lambda path: -len(path.parts)):
        target = scaffold.root / relative
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()
