"""`mlops model`: registered versions. Leaves to others: MLflow (mlops/registry), answers (mlops/evaluation)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlops.cli.explaining import explain
from mlops.cli.rendering import emit_json, render_table
from mlops.errors import ProjectError
from mlops.files import write_atomically
from mlops.training.loader import FILE, render_loader

if TYPE_CHECKING:
    from mlops.registry.mlflow_models import ModelRegistry, ModelVersion

JSON = click.option("--json", "is_json", is_flag=True, help="Print JSON.")


@click.group()
def model() -> None:
    """List, show and explain registered model versions."""


model.add_command(explain)


@model.command("list")
@click.argument("product", required=False)
@JSON
def list_(product: str | None, *, is_json: bool) -> None:
    """Versions of PRODUCT, or of every product, newest first."""
    registry = _open_registry()
    products = [product] if product else registry.list_products()
    versions = [version for name in products for version in registry.list_versions(name)]
    if is_json:
        emit_json([version.to_json() for version in versions])
        return
    if not versions:
        click.echo(f"no version{f' of {product}' if product else ''} yet: `mlops release PRODUCT` makes one")
        return
    rows = []
    for version in versions:
        shown = version.to_json()
        aliases = ",".join(version.aliases) or "-"
        rows.append((f"{version.product}@{version.number}", aliases, shown["created"], version.candidate[:19]))
    click.echo(render_table(("version", "aliases", "registered", "candidate"), rows))


@model.command("show")
@click.argument("reference", metavar="PRODUCT@VERSION")
@JSON
def show(reference: str, *, is_json: bool) -> None:
    """Everything known about one version, by number or alias."""
    version = _find(_open_registry(), reference)
    if is_json:
        emit_json(version.to_json())
        return
    for name, value in version.to_json().items():
        if name == "tags":
            continue
        click.echo(f"{name:10} {', '.join(value) if isinstance(value, list) else value}")
    for name, value in version.tags.items():
        click.echo(f"  {name} = {value}")


@model.command("get")
@click.argument("reference", metavar="PRODUCT@VERSION")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path), required=False)
@click.option("--to", "target", type=click.Path(path_type=Path), help="DIR by name: a folder that does not exist yet.")
@click.option("--dry-run", is_flag=True, help="Only say what would be fetched.")
def get(reference: str, *, folder: Path | None, target: Path | None, dry_run: bool) -> None:
    """Copy a version's files to DIR: ONNX, weights, contract, signature, and `load.py`, which loads them."""
    target = target or folder
    if target is None:
        raise ProjectError("say where to: a folder that does not exist yet", hint=f"mlops model get {reference} DIR")
    registry = _open_registry()
    version = _find(registry, reference)
    if dry_run:
        click.echo(f"would copy {version.source} to {target}")
        return
    registry.download(version, target=target)
    members = json.loads((target / "params.json").read_text(encoding="utf-8")).get("members", 0)
    write_atomically(target / FILE, render_loader(members=members))
    for path in sorted(target.rglob("*")):
        if path.is_file():
            click.echo(f"{path.stat().st_size:>10}  {path}")


def _open_registry() -> ModelRegistry:
    from mlops.project.opening import open_project  # SQLAlchemy: 0.2 s
    from mlops.registry.mlflow_door import artifact_root, tracking_uri
    from mlops.registry.mlflow_models import ModelRegistry

    places = open_project().places
    return ModelRegistry(tracking_uri(places), artifact_root(places))


def _find(registry: ModelRegistry, reference: str) -> ModelVersion:
    product, separator, wanted = reference.partition("@")
    if not (product and separator and wanted):
        raise ProjectError(f"{reference!r} is not of the form PRODUCT@VERSION", hint="for instance income@latest")
    version = registry.find_version(product, wanted)
    if version is None:
        known = ", ".join(str(version.number) for version in registry.list_versions(product))
        hint = f"versions of {product}: {known}" if known else f"{product} has no version: `mlops release {product}`"
        raise ProjectError(f"there is no {reference}", hint=hint)
    return version
