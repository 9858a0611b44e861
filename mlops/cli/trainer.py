"""`mlops trainer`: check the trainer contract, run one trial by hand. Leaves to others: both (mlops/training)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from mlops.cli.rendering import emit_json, refuse
from mlops.errors import ProjectError, Refusal, TrainingError

if TYPE_CHECKING:
    from mlops.project.opening import Project
    from mlops.training.spec import SweepSpec


@click.group()
def trainer() -> None:
    """Check a trainer, or run one trial by hand."""


@trainer.command()
@click.argument("product")
@click.option("--json", "as_json", is_flag=True, help="Print violations as JSON.")
def check(product: str, *, as_json: bool) -> None:
    """Try the trainer contract on a few rows, on the CPU, and the tests in tests/trainers/PRODUCT/."""
    from mlops.project.opening import open_project  # heavy: SQLAlchemy, torch
    from mlops.training.launch import load_launch_spec, load_version
    from mlops.training.step_check import check_step

    project = open_project()
    spec = load_launch_spec(project.places, project.require_product(product))
    bench = project.workbench(lambda line: click.echo(line, err=as_json))
    checked = check_step(bench, spec, version=load_version(project.places, spec))
    if isinstance(checked, Refusal):
        if as_json:
            emit_json([{"line": reason.code, "text": reason.text} for reason in checked.reasons])
        refuse(checked, what=f"{product}.py does not keep the trainer contract")
    if as_json:
        emit_json([])
    again = " (checked before)" if checked.is_reused else ""
    click.echo(f"{product}.py keeps the trainer contract{again}", err=as_json)


@trainer.command()
@click.argument("product")
@click.option("--trial", metavar="SWEEP/NUMBER", help="Take parameters and seed from this trial.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set a parameter; may be repeated.")
@click.option("--epochs", type=click.IntRange(min=1), help="Instead of the number in the spec.")
@click.option("--seed", type=click.IntRange(min=0), help="Instead of the trial's.")
@click.option("--local", is_flag=True, default=True, hidden=True, help="In this process; the only way.")
@click.option("--dry-run", is_flag=True, help="Show the parameters; run nothing.")
def run(
    product: str,
    trial: str | None,
    settings: tuple[str, ...],
    epochs: int | None,
    seed: int | None,
    local: bool,
    dry_run: bool,
) -> None:
    """Run one trial in this process: no lease, no Ray, breakpoints work.

    With `workers` above 1 the others are child processes; on the CPU the weights are those of the sweep's trial.
    """
    from mlops.datasets.fence import find_training_fence
    from mlops.project.opening import open_project
    from mlops.training.launch import load_launch_spec, load_version, make_request
    from mlops.training.local_attempt import LocalChannel, LocalTrial, first_point, seed_of_trial
    from mlops.training.local_group import run_local_group
    from mlops.training.ray_worker import SourceRecipe
    from mlops.training.trainer import read_trainer

    project = open_project()
    spec = load_launch_spec(project.places, project.require_product(product))
    params, found_seed = _parameters(project, spec, trial) if trial else (first_point(spec), seed_of_trial(spec, 0))
    params = {**params, **_parse_settings(settings, known=read_trainer(project.places.trainer_file(product)).known)}
    click.echo(" ".join(f"{name}={value}" for name, value in params.items()))
    if dry_run:
        return
    version = load_version(project.places, spec)
    fence = find_training_fence(project.places, version, purpose=spec.purpose)
    if fence is not None:
        refuse(fence, what=f"{product} is not trained")
    request = make_request(project.places, spec, version=version, tags={}, spender="")
    with tempfile.TemporaryDirectory(prefix="mlops-trial-") as scratch:
        result = run_local_group(
            LocalTrial(
                spec=spec,
                trainer_file=project.places.trainer_file(product),
                params=params,
                reserved=request.reserved,
                folder=Path(scratch),
                seed=found_seed if seed is None else seed,
                epochs=epochs or spec.epochs,
            ),
            workers=spec.workers,
            open_source=SourceRecipe(version, str(project.places.cache / "shards")).open,
            channel=LocalChannel(say=click.echo),
        )
    if result.outcome != "complete":
        raise TrainingError(f"the trial {result.outcome}: {result.reason}", hint="set a breakpoint and run it again")
    click.echo(f"weights {result.weights_sha256[:19]}, {result.usage.busy_us / 1e6:.1f} s")


def _parameters(project: Project, spec: SweepSpec, reference: str) -> tuple[dict[str, Any], int]:
    """Parameters and seed of a trial `SWEEP/NUMBER`."""
    from mlops.training.sweep import load_trials
    from mlops.training.sweep_view import load_sweep_row, require_search

    name, separator, number = reference.rpartition("/")
    if not separator:
        raise ProjectError(f"--trial {reference!r} is not of the form SWEEP/NUMBER", hint="for instance sweep-2f6c/0")
    row = load_sweep_row(project.ledger, name)
    require_search(row)
    found = [item for item in load_trials(project.ledger, row.sweep_id) if str(item.number) == number]
    if not found:
        raise ProjectError(f"{row.sweep_id} has no trial {number!r}", hint=f"`mlops sweep show {row.sweep_id}`")
    return found[0].params, found[0].seed


def _parse_settings(settings: tuple[str, ...], *, known: frozenset[str]) -> dict[str, Any]:
    from mlops.training.spec import read_exponent  # pydantic

    parsed: dict[str, Any] = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator or not name:
            raise ProjectError(f"--set {setting!r} is not of the form KEY=VALUE")
        if name not in known:
            raise ProjectError(
                f"--set {setting!r}: the trainer does not read {name!r}", hint=f"it reads {', '.join(sorted(known))}"
            )
        try:
            parsed[name] = read_exponent(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise ProjectError(
                f"--set {setting!r}: {value!r} is no YAML value", hint="write a number, true, false or a word"
            ) from error
    return parsed
