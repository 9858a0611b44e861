"""`mlops image`: build, look at, try out and run serving images."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlops.cli.image_registry import find_image, prune, pull, push, tags, verify
from mlops.cli.rendering import emit_json, refuse, render_table
from mlops.errors import ProjectError, Refusal, ServingError

if TYPE_CHECKING:
    from mlops.project.opening import Project
    from mlops.serving.image import BuiltImage
    from mlops.serving.oci_layout import StoredImage
    from mlops.serving.runtime import Runtime

_RUNTIMES = ("podman", "bubblewrap", "process")


@click.group()
def image() -> None:
    """Build, list, verify, probe and run serving images (OCI layout in .mlops/images)."""


for _command in (verify, push, pull, tags, prune):
    image.add_command(_command)


@image.command()
@click.argument("reference", metavar="PRODUCT@VERSION", required=False)
@click.option("--candidate", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A candidate folder.")
@click.option("--explain", is_flag=True, help="Say for each layer why it was or was not rebuilt.")
@click.option("--dry-run", is_flag=True, help="Say what would be built.")
@click.option("--json", "as_json", is_flag=True, help="Print the image as JSON.")
def build(reference: str | None, *, candidate: Path | None, explain: bool, dry_run: bool, as_json: bool) -> None:
    """Build the image of a registered version (income@latest, income@3) or of a candidate folder."""
    from mlops.project.opening import open_project  # heavy: SQLAlchemy

    if (reference is None) == (candidate is None):
        raise click.UsageError("name PRODUCT@VERSION, or --candidate FOLDER")
    project = open_project()
    request = _request_of_candidate(project, candidate) if candidate else _request_of_version(project, reference or "")
    if dry_run:
        click.echo(f"would build {request.product}:{request.version} from {request.candidate_folder}")
        return
    from mlops.serving.image import build_image  # heavy: onnxruntime

    built = build_image(request)
    if as_json:
        emit_json(_image_json(built))
        return
    click.echo(f"{built.reference}  {built.digest}  {built.compressed_bytes / 1e6:.1f} MB")
    for note in built.notes:
        click.echo(f"note: {note}")
    if explain:
        click.echo(_explain(built))


@image.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_images(*, as_json: bool) -> None:
    """List the images in the project's layout."""
    from mlops.project.opening import open_project  # heavy: SQLAlchemy
    from mlops.serving.oci_layout import ImageLayout

    layout = ImageLayout(open_project().places.images)
    rows = [(stored, layout.size_of(stored.digest)) for stored in layout.images()]
    if as_json:
        emit_json([{"reference": stored.reference, "digest": stored.digest, "bytes": size} for stored, size in rows])
        return
    table = [(stored.reference, stored.digest, f"{size / 1e6:.1f} MB") for stored, size in rows]
    click.echo(render_table(("REFERENCE", "DIGEST", "SIZE"), table))


@image.command()
@click.argument("reference")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def show(reference: str, *, as_json: bool) -> None:
    """Show what an image is made of: layers, labels, environment."""
    import json

    from mlops.project.opening import open_project  # heavy: SQLAlchemy
    from mlops.serving.oci_layout import ImageLayout

    layout = ImageLayout(open_project().places.images)
    stored = find_image(layout.folder, reference)
    manifest = layout.read_manifest(stored.digest)
    config = json.loads(layout.read_blob(manifest["config"]["digest"]))
    if as_json:
        emit_json({"reference": stored.reference, "digest": stored.digest, "manifest": manifest, "config": config})
        return
    click.echo(f"{stored.reference}  {stored.digest}")
    rows = [
        ((layer.get("annotations") or {}).get("io.mlops.layer", ""), layer["digest"], f"{layer['size'] / 1e6:.2f} MB")
        for layer in manifest["layers"]
    ]
    click.echo(render_table(("LAYER", "DIGEST", "SIZE"), rows))
    for name, value in sorted(config["config"].get("Labels", {}).items()):
        click.echo(f"{name}: {value}")


@image.command()
@click.argument("reference")
@click.option("--runtime", "names", type=click.Choice(_RUNTIMES), multiple=True, help="In order of preference.")
@click.option(
    "--candidate", type=click.Path(exists=True, file_okay=False, path_type=Path), help="The judged candidate."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def probe(reference: str, *, names: tuple[str, ...], candidate: Path | None, as_json: bool) -> None:
    """Boot an image without network and try it out: golden and malformed requests, latency, memory, drain."""
    from mlops.project.opening import open_project  # heavy: SQLAlchemy
    from mlops.serving.probe import ProbeRequest, probe_image

    project = open_project()
    stored = find_image(project.places.images, reference)
    folder = candidate or _judged_candidate(project, stored)
    request = ProbeRequest(
        layout=project.places.images, digest=stored.digest, candidate_folder=folder, clock=project.clock
    )
    result = probe_image(request, runtime=_runtime(project, names))
    if as_json:
        emit_json(result.to_json())
    else:
        click.echo(f"{result.verdict}  {stored.reference}  in {result.runtime}")
        for name, value in result.facts.items():
            click.echo(f"  {name}: {value}")
    if not result.is_go:
        refuse(Refusal(result.reasons), what=f"{stored.reference} fails the probe")


@image.command()
@click.argument("reference")
@click.option("--port", type=click.IntRange(1, 65_535), default=8080, show_default=True, help="On 127.0.0.1.")
@click.option("--runtime", "names", type=click.Choice(_RUNTIMES), multiple=True, help="In order of preference.")
@click.option("--dry-run", is_flag=True, help="Say what would be started.")
def run(reference: str, *, port: int, names: tuple[str, ...], dry_run: bool) -> None:
    """Serve an image on 127.0.0.1 until interrupted."""
    from mlops.project.opening import open_project  # heavy: SQLAlchemy

    project = open_project()
    stored = find_image(project.places.images, reference)
    if dry_run:
        click.echo(f"would serve {stored.reference} ({stored.digest}) on http://127.0.0.1:{port}")
        return
    from mlops.serving.trial_run import serve_until_interrupted

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # else the server would outlive a closed terminal
        signal.signal(number, signal.default_int_handler)
    serve_until_interrupted(
        project.places.images, digest=stored.digest, port=port, runtime=_runtime(project, names), say=click.echo
    )


def _request_of_candidate(project: Project, folder: Path) -> Any:
    from mlops.provenance.digest import digest_folder, hex_of
    from mlops.serving.deploy_spec import load_deploy_spec
    from mlops.serving.image import ImageRequest
    from mlops.training.contract import load_contract

    contract = load_contract(folder / "contract.json")
    digest = digest_folder(folder)
    return ImageRequest(
        candidate_folder=folder,
        product=contract.product,
        version=f"candidate-{hex_of(digest)[:12]}",
        evidence={"candidate": digest, "manifest": contract.dataset.digest},
        spec=load_deploy_spec(project.places, contract.product).image,
        layout=project.places.images,
        downloads=project.places.downloads,
        cache=project.places.cache,
        say=_say,
    )


def _request_of_version(project: Project, reference: str) -> Any:
    from mlops.registry.mlflow_door import artifact_root, tracking_uri  # heavy: MLflow
    from mlops.registry.mlflow_models import ModelRegistry
    from mlops.serving.step_image import image_request

    product, _, version = reference.partition("@")
    project.require_product(product)
    registry = ModelRegistry(tracking_uri(project.places), artifact_root(project.places))
    found = registry.find_version(product, version or "latest")
    if found is None:
        raise ProjectError(f"{reference} is not registered", hint=f"`mlops model list {product}` shows the versions")
    return image_request(
        project.places,
        product=product,
        candidate=found.candidate,
        gate=found.tags.get("mlops.gate", ""),
        number=found.number,
        say=_say,
    )


def _judged_candidate(project: Project, stored: StoredImage) -> Path:
    import json

    from mlops.provenance.digest import hex_of
    from mlops.serving.oci_layout import ImageLayout

    layout = ImageLayout(project.places.images)
    config = json.loads(layout.read_blob(layout.read_manifest(stored.digest)["config"]["digest"]))
    digest = config["config"].get("Labels", {}).get("io.mlops.evidence.candidate", "")
    folder = project.places.candidates / hex_of(digest) if digest else None
    if folder is None or not folder.is_dir():
        raise ServingError(
            f"the candidate {digest or '(none)'} of {stored.reference} is not here",
            hint="name it with --candidate FOLDER",
        )
    return folder


def _runtime(project: Project, names: tuple[str, ...]) -> Runtime:
    from mlops.deploy.runtimes import choose_runtime

    return choose_runtime(names or ("podman", "bubblewrap", "process"), state=project.places.serving_state)


def _image_json(built: BuiltImage) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(built)


def _explain(built: BuiltImage) -> str:
    rows = [
        (layer.name, "reused" if layer.is_reused else "written", f"{layer.compressed_bytes / 1e6:.2f} MB", layer.reason)
        for layer in built.layers
    ]
    return render_table(("LAYER", "", "SIZE", "WHY"), rows)


def _say(line: str) -> None:
    click.echo(line, err=True)
