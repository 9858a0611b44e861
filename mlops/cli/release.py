"""`mlops release`: bake a product, or the products whose inputs changed between two commits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlops.cli.rendering import emit_json, refuse
from mlops.errors import ProjectError, Refusal

if TYPE_CHECKING:
    from mlops.project.opening import Project
    from mlops.release import Release


@click.command()
@click.argument("product", required=False)
@click.option("--changed", metavar="BASE..HEAD", help="Bake only products whose inputs changed between two commits.")
@click.option("--allow-dirty", is_flag=True, help="Bake although files are uncommitted; this is recorded.")
@click.option("--dry-run", is_flag=True, help="Show which steps would be reused and which would run.")
@click.option("--json", "as_json", is_flag=True, help="Print the finished steps as JSON.")
def release(product: str | None, *, changed: str | None, allow_dirty: bool, dry_run: bool, as_json: bool) -> None:
    """Bake PRODUCT: data, source check, sweep, export, gate, registration, image, probe."""
    from mlops.project.opening import open_project  # heavy: SQLAlchemy
    from mlops.provenance.steps import StepMissing
    from mlops.release import bake  # heavy: pyarrow, pydantic

    project = open_project()
    products = _choose_products(project, product=product, changed=changed)
    if dry_run:
        project = project.preview()
    shown = []
    for name in products:
        try:
            outcome = bake(project, name, allow_dirty=allow_dirty, say=_say(as_json=as_json))
        except StepMissing as missing:
            click.echo(f"      would run: {missing.kind}, and every step after it", err=as_json)
            continue
        if isinstance(outcome, Refusal):
            refuse(outcome, what=f"{name} is not released")
        shown.append(outcome)
    if as_json:
        emit_json({done.product: _steps_json(done) for done in shown})
        return
    for done in shown:
        click.echo(_render_where_to_look(done))


def _choose_products(project: Project, *, product: str | None, changed: str | None) -> list[str]:
    if (product is None) == (changed is None):
        raise click.UsageError("name one PRODUCT, or --changed BASE..HEAD")
    if product is not None:
        return [project.require_product(product)]
    from mlops.project.changes import find_changed_products

    base, separator, head = (changed or "").partition("..")
    if not (base and separator and head):
        raise ProjectError(f"--changed {changed!r} is not of the form BASE..HEAD")
    products = find_changed_products(project.places, base=base, head=head)
    click.echo(f"changed between {base} and {head}: {', '.join(products) or 'no product'}", err=True)
    return products


def _say(*, as_json: bool):  # type: ignore[no-untyped-def]  # a click.echo with one argument bound
    return lambda line: click.echo(line, err=as_json)


def _steps_json(done: Release) -> dict[str, object]:
    return {
        name: {
            "step_id": run.record.step_id,
            "is_reused": run.is_reused,
            "outputs": run.record.outputs,
            "facts": run.record.facts,
        }
        for name, run in done.steps.items()
    }


def _render_where_to_look(done: Release) -> str:
    gate, image, version = (done.steps[name].record for name in ("gate", "image", "registration"))
    reference = f"{done.product}@{version.facts['number']}"
    return "\n".join(
        [
            f"released {reference}",
            f"  gate report   {gate.facts['report']}",
            f"  image         {image.outputs['image']}",
            "  runs          mlops ui",
            f"  where from    mlops trace {reference}",
            f"  next          mlops promote {reference} --to staging --dry-run",
        ]
    )
