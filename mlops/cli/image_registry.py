"""`mlops image push|pull|tags|prune|verify`: images beyond this machine, what may go, and what stands in them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import click

from mlops.cli.rendering import emit_json, refuse, render_table
from mlops.errors import Refusal, ServingError

if TYPE_CHECKING:
    from pathlib import Path

    from mlops.project.opening import Project
    from mlops.serving.oci_layout import StoredImage

_KEPT_FOR_ROLLBACK = 5
"""Images per environment and product that served well, newest first."""


@click.command()
@click.argument("reference")
@click.argument("target", metavar="REGISTRY/REPOSITORY[:TAG]")
@click.option("--dry-run", is_flag=True, help="Say what would be pushed.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def push(reference: str, target: str, *, dry_run: bool, as_json: bool) -> None:
    """Push an image and its bill of materials to a registry; credentials come from docker's config."""
    import tempfile
    from pathlib import Path

    from mlops.project.opening import open_project  # heavy: SQLAlchemy
    from mlops.serving.image_transfer import attach_evidence, push_image
    from mlops.serving.inventory import take_inventory
    from mlops.serving.oci_layout import ImageLayout
    from mlops.serving.oci_registry import RegistryClient, parse_registry_reference
    from mlops.serving.pushed_images import record_push
    from mlops.serving.sbom import MEDIA_TYPE, render_sbom

    project = open_project()
    places = project.places
    stored, named = find_image(places.images, reference), parse_registry_reference(target)
    if dry_run:
        click.echo(f"would push {stored.reference} ({stored.digest}) to {target}")
        return
    with project.ledger.write() as transaction:
        record_push(transaction, stored.digest, named)
    client = RegistryClient(named.registry, named.repository)
    pushed = push_image(places.images, stored.digest, target=named, client=client, say=_say)
    size = ImageLayout(places.images).blob_path(stored.digest).stat().st_size
    with tempfile.TemporaryDirectory(prefix="mlops-push-") as scratch:
        evidence = attach_evidence(
            render_sbom(take_inventory(places.images, stored.digest)),
            media_type=MEDIA_TYPE,
            image=stored.digest,
            image_size=size,
            client=client,
            annotations={},
            scratch=Path(scratch),
        )
    if as_json:
        emit_json({**vars(pushed), "sbom": evidence})
        return
    click.echo(
        f"{pushed.reference}  {pushed.uploaded_bytes / 1e6:.1f} MB sent, {pushed.skipped_blobs} blobs were there"
    )


@click.command()
@click.argument("source", metavar="REGISTRY/REPOSITORY:TAG|@DIGEST")
@click.option("--as", "reference", metavar="PRODUCT:VERSION", help="Name in the layout [default: repository:tag].")
@click.option("--dry-run", is_flag=True, help="Say what would be pulled.")
def pull(source: str, *, reference: str | None, dry_run: bool) -> None:
    """Bring an image from a registry into the project's layout."""
    from mlops.project.opening import open_project  # heavy: SQLAlchemy
    from mlops.serving.image_transfer import pull_image
    from mlops.serving.oci_registry import parse_registry_reference

    places = open_project().places
    named = parse_registry_reference(source)
    name = reference or f"{named.repository.rpartition('/')[2]}:{named.tag or (named.digest or '')[7:19]}"
    if dry_run:
        click.echo(f"would pull {source} as {name}")
        return
    click.echo(f"{name}  {pull_image(places.images, named, reference=name, say=_say)}")


@click.command()
@click.argument("repository", metavar="REGISTRY/REPOSITORY")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def tags(repository: str, *, as_json: bool) -> None:
    """List the tags of a repository in a registry."""
    from mlops.serving.oci_registry import RegistryClient, parse_registry_reference

    named = parse_registry_reference(repository)
    found = RegistryClient(named.registry, named.repository).list_tags()
    if as_json:
        emit_json(list(found))
        return
    for tag in found:
        click.echo(tag)


@click.command()
@click.option("--keep", type=click.IntRange(min=1), default=5, show_default=True, help="Newest versions per product.")
@click.option("--dry-run", is_flag=True, help="Say what would go.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def prune(*, keep: int, dry_run: bool, as_json: bool) -> None:
    """Delete old images, never one that an environment or a rollback needs."""
    from mlops.project.opening import open_project  # heavy: SQLAlchemy
    from mlops.serving.oci_layout import ImageLayout
    from mlops.serving.retention import apply_prune, plan_prune

    project = open_project()
    layout = ImageLayout(project.places.images)
    plan = plan_prune(layout.images(), needed=_needed_digests(project), keep=keep)
    freed = 0 if dry_run else apply_prune(layout, plan)
    if as_json:
        removed = [image.reference for image in plan.removed]
        emit_json({"removed": removed, "kept": [image.reference for image, _ in plan.kept], "freed_bytes": freed})
        return
    rows = [(image.reference, "removed" if not dry_run else "would go", "") for image in plan.removed]
    rows += [(image.reference, "kept", why) for image, why in plan.kept]
    click.echo(render_table(("REFERENCE", "", "WHY"), rows))
    if not dry_run:
        click.echo(f"{freed / 1e6:.1f} MB freed")


@click.command()
@click.argument("reference")
@click.option("--osv", "snapshot", metavar="FOLDER", help="OSV snapshot [default: .mlops/osv].")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify(reference: str, *, snapshot: str | None, as_json: bool) -> None:
    """Look at an image without running it: layers, bill of materials, licences, vulnerabilities, hardening."""
    from pathlib import Path

    from mlops.files import write_atomically
    from mlops.project.opening import open_project  # heavy: SQLAlchemy
    from mlops.provenance.digest import hex_of
    from mlops.serving.verification import verify_image

    project = open_project()
    places = project.places
    stored = find_image(places.images, reference)
    osv = Path(snapshot) if snapshot else places.state / "osv"
    found = verify_image(places.images, stored.digest, osv_snapshot=osv, clock=project.clock)
    path = places.evidence / hex_of(stored.digest) / "sbom.cdx.json"
    write_atomically(path, found.sbom)
    if as_json:
        emit_json(found.to_json())
    else:
        click.echo(f"{found.verdict}  {stored.reference}  {stored.digest}")
        for name, value in found.facts.items():
            click.echo(f"  {name}: {value}")
        click.echo(f"  bill of materials: {path}")
    if not found.is_go:
        refuse(Refusal(found.reasons), what=f"{stored.reference} is not verified")


def find_image(layout_folder: Path, reference: str) -> StoredImage:
    """The image that a person named as `income@3`, `income:3`, `income@latest` or `sha256:…`.

    Raises:
        ServingError: There is none; names those that exist.
    """
    from mlops.serving.oci_layout import ImageLayout

    layout = ImageLayout(layout_folder)
    name = reference if reference.startswith("sha256:") else reference.replace("@", ":")
    stored = layout.find(name)
    if stored is None and name.endswith(":latest"):  # of released ones; a pulled image may bear the name itself
        versions = [image.reference.removeprefix(name.removesuffix("latest")) for image in layout.images()]
        newest = max((int(version) for version in versions if version.isdecimal()), default=None)
        stored = layout.find(f"{name.removesuffix('latest')}{newest}")
    if stored is None:
        known = tuple(item.reference for item in layout.images())
        raise ServingError(f"there is no image {reference}", hint="build it with `mlops image build`", items=known)
    return stored


def _needed_digests(project: Project) -> Collection[str]:
    """What environments serve, want, or would go back to."""
    from mlops.deploy.desired_state import parse_desired
    from mlops.deploy.sql_deployments import FAILED, load_deployments

    needed: set[str] = set()
    for path in sorted((project.places.root / "deploy" / "desired").glob("*.yaml")):
        text = path.read_text("utf-8")
        parse_desired(text, source=str(path))  # a state that cannot be read must not lose its images
        needed |= {word.strip("'\"") for word in text.split() if word.strip("'\"").startswith("sha256:")}
    with project.ledger.read() as connection:
        history = load_deployments(connection)
    good: dict[tuple[str, str], list[str]] = {}
    for row in history:
        served = good.setdefault((row.environment, row.product), [])
        if row.until_us is None or (row.outcome != FAILED and len(served) < _KEPT_FOR_ROLLBACK):
            served.append(row.image)
    return needed.union(*good.values())


def _say(line: str) -> None:
    click.echo(line, err=True)
