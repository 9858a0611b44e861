"""`mlops sweep`: launch, watch, stop, resume and compare sweeps. Leaves to others: driving them (mlops/training)."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import click
import yaml

from mlops.cli.interrupts import asking_first
from mlops.cli.rendering import emit_json, refuse, render_table
from mlops.cli.sweep_table import FOLLOW_SECONDS, LiveTable, follow_sweep, render_sweep
from mlops.errors import Reason, Refusal

if TYPE_CHECKING:
    from mlops.project.opening import Project
    from mlops.training.spec import SweepSpec
    from mlops.training.sweep import SweepOutcome, SweepRequest
    from mlops.training.sweep_view import SweepView

STOPPING = "stopping: each trial commits a checkpoint at its next step"


@click.group()
def sweep() -> None:
    """Launch, list, show, stop and resume sweeps."""


@sweep.command()
@click.argument("product")
@click.option("--trials", type=click.IntRange(min=1), help="Instead of the number in the spec.")
@click.option("--dry-run", is_flag=True, help="Check spec, trainer and data; forecast cost and time; start nothing.")
@click.option("--hint", help="With --dry-run: expected time per trial, for instance 20min, while none has ended.")
@click.option("--detach", is_flag=True, help="Let the driver outlive this command, here or at RAY_JOBS_ADDRESS.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON; progress goes to stderr.")
def launch(product: str, *, trials: int | None, dry_run: bool, hint: str | None, detach: bool, as_json: bool) -> None:
    """Run the sweep of PRODUCT under its budget; one that was interrupted goes on."""
    from mlops.project.file_examination import require_sweep_file
    from mlops.project.opening import open_project  # heavy: SQLAlchemy, pydantic, torch
    from mlops.training.launch import load_launch_spec
    from mlops.training.spec import verify_parameters

    project = open_project()
    places = project.places
    require_sweep_file(places, project.require_product(product))
    spec = load_launch_spec(places, product, trials=trials)
    verify_parameters(spec, trainer_file=places.trainer_file(product))
    if dry_run:
        _show_plan(project, spec, hint=hint, as_json=as_json)
        return
    request = _request(project, spec)
    if detach:
        _detach(project, product, request, trials=trials, as_json=as_json)
        return
    _run(project, spec, request, as_json=as_json)


@sweep.command()
@click.argument("sweep_id")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON; progress goes to stderr.")
@click.option("--dry-run", is_flag=True, help="Say what is left to do.")
@click.option("--accept-changes", is_flag=True, help="Go on although trainer, spec, lock or code changed meanwhile.")
def resume(sweep_id: str, *, as_json: bool, dry_run: bool, accept_changes: bool) -> None:
    """Go on with a stopped or interrupted sweep; finished trials are not repeated."""
    from mlops.project.file_examination import require_sweep_file
    from mlops.project.opening import open_project
    from mlops.training import sweep_view
    from mlops.training.launch import load_launch_spec
    from mlops.training.spec import verify_parameters
    from mlops.training.sweep import find_changes
    from mlops.training.sweep_view import load_sweep_row, view_sweep

    project = open_project()
    row = load_sweep_row(project.ledger, sweep_id)
    sweep_view.require_search(row)
    spec = load_launch_spec(project.places, project.require_product(row.product), trials=int(row.spec["trials"]))
    verify_parameters(spec, trainer_file=project.places.trainer_file(row.product))
    require_sweep_file(project.places, row.product)
    request = replace(_request(project, spec), resumed_id=row.sweep_id)
    changed = find_changes(request, row.inputs)
    is_finished = row.state == "finished"
    if changed and (is_finished or not accept_changes):
        way_on = "it is finished" if is_finished else "--accept-changes goes on and keeps that its trials differ"
        what = ", ".join(changed)
        text = f"{what} changed since {row.sweep_id} began; `mlops sweep launch {row.product}` starts anew, {way_on}"
        refuse(Refusal((Reason("inputs-changed", text),)), what=f"{row.sweep_id} is not resumed")
    if dry_run:
        view = view_sweep(project.ledger, row.sweep_id, now_us=project.clock.now_us())
        click.echo(f"would go on with {row.sweep_id}: {view.done} of {view.total} trials are done")
        return
    if changed:
        sweep_view.accept_changes(project.ledger, row.sweep_id, inputs=request.inputs, changed=changed)
        click.echo(f"{row.sweep_id} goes on with another {', '.join(changed)}", err=as_json)
    _run(project, spec, request, as_json=as_json)


@sweep.command("list")
@click.argument("product", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_(product: str | None, *, as_json: bool) -> None:
    """All sweeps, newest first."""
    from mlops.project.opening import open_project
    from mlops.training.sweep_view import list_views

    project = open_project()
    views = list_views(project.ledger, product=product, now_us=project.clock.now_us())
    if product is not None and not views:  # one whose files are gone may still have sweeps
        project.require_product(product)
    if as_json:
        emit_json([view.to_json() for view in views])
        return
    rows = [
        (
            view.sweep_id,
            view.product,
            view.state,
            f"{view.done}/{view.total}",
            _winner(view),
            f"{view.seconds:.0f} s",
        )
        for view in views
    ]
    click.echo(
        render_table(("sweep", "product", "state", "trials", "winner", "time"), rows) if rows else "no sweep yet"
    )


@sweep.command()
@click.argument("sweep_id")
@click.option("--follow", is_flag=True, help="Show it live until it ends.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def show(sweep_id: str, *, follow: bool, as_json: bool) -> None:
    """One sweep: its trials, metrics, and how the paid time was used."""
    from mlops.project.opening import open_project
    from mlops.training.sweep_view import view_sweep

    project = open_project()

    def look() -> SweepView:
        return view_sweep(project.ledger, sweep_id, now_us=project.clock.now_us())

    if as_json:
        while True:
            view = look()
            emit_json(view.to_json())
            if not follow or view.state != "running":
                return
            project.clock.sleep(FOLLOW_SECONDS)
    if follow:
        follow_sweep(look, sleep=project.clock.sleep)
    click.echo(render_sweep(look()))


@sweep.command()
@click.argument("sweep_id")
@click.option("--dry-run", is_flag=True, help="Say what would be stopped.")
def stop(sweep_id: str, *, dry_run: bool) -> None:
    """Ask a running sweep to stop; its trials commit a checkpoint at their next step."""
    from mlops.project.opening import open_project
    from mlops.training.sweep_view import load_sweep_row, show_state, wish_stop

    project = open_project()
    row = load_sweep_row(project.ledger, sweep_id)
    state = show_state(row, now_us=project.clock.now_us())
    if state != "running":
        click.echo(f"{row.sweep_id} is {state}: nothing to stop")
    elif dry_run:
        click.echo(f"would stop {row.sweep_id}, driven by {row.driver}")
    else:
        wish_stop(project.ledger, row.sweep_id)
        click.echo(f"{row.sweep_id} stops at the next step of each trial; go on with `mlops sweep resume`")


@sweep.command("render-cluster")
@click.argument("product")
@click.option("--kind", type=click.Choice(("kuberay", "ray-up")), default="kuberay", help="For whom the file is.")
def render_cluster_(product: str, *, kind: Literal["kuberay", "ray-up"]) -> None:
    """Print the file of the cluster that `cluster: ephemeral` would start, checked; start nothing."""
    from mlops.project.opening import open_project
    from mlops.training.launch import load_launch_spec
    from mlops.training.render_ray_cluster import render_cluster

    project = open_project()
    spec = load_launch_spec(project.places, project.require_product(product))
    request = _request(project, spec)
    content = render_cluster(spec, kind=kind, name=request.sweep_id, lock=request.inputs["lock"])
    click.echo(yaml.safe_dump(content, sort_keys=False), nl=False)


@sweep.command()
@click.argument("first")
@click.argument("second")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def compare(first: str, second: str, *, as_json: bool) -> None:
    """What differs between two sweeps."""
    from mlops.project.opening import open_project
    from mlops.training.sweep_view import compare_sweeps, view_sweep

    project = open_project()
    now_us = project.clock.now_us()
    views = [view_sweep(project.ledger, name, now_us=now_us) for name in (first, second)]
    rows = compare_sweeps(views[0], views[1])
    if as_json:
        emit_json(rows)
        return
    shown = [(row["what"], row["first"], row["second"], "" if row["is_equal"] else "differs") for row in rows]
    click.echo(render_table(("", views[0].sweep_id, views[1].sweep_id, ""), shown))


def _detach(project: Project, product: str, request: SweepRequest, *, trials: int | None, as_json: bool) -> None:
    from mlops.places import require_no_namesake
    from mlops.training.detached import ship_driver, spawn_driver
    from mlops.training.ray_jobs import RayJobs

    require_no_namesake(project.places.root)
    command = ["sweep", "launch", product, *(() if trials is None else ("--trials", str(trials)))]
    address = os.environ.get("RAY_JOBS_ADDRESS", "")
    if address:
        jobs, url = RayJobs(address), project.ledger_url
        where = f"job {ship_driver(project.places, jobs, command, sweep_id=request.sweep_id, ledger_url=url)}"
    else:
        pid, log = spawn_driver(project.places, command, sweep_id=request.sweep_id)
        where = f"process {pid}, log {log.relative_to(project.places.root)}"
    if as_json:
        emit_json({"sweep_id": request.sweep_id, "driver": where})
        return
    click.echo(f"{request.sweep_id} runs detached: {where}")
    click.echo(f"watch it with `mlops sweep show {request.sweep_id} --follow`")


def _run(project: Project, spec: SweepSpec, request: SweepRequest, *, as_json: bool) -> None:
    from mlops.budgets.opening import open_lease_queue
    from mlops.registry.mlflow_runs import open_mirror
    from mlops.training.detached import require_expected_lock
    from mlops.training.launch import launch_sweep, load_version
    from mlops.training.step_check import check_step
    from mlops.training.sweep_view import view_sweep, wish_stop

    require_expected_lock(project.places)
    version = load_version(project.places, spec)
    bench = project.workbench(lambda line: click.echo(line, err=as_json))
    checked = check_step(bench, spec, version=version)  # before the first lease
    if isinstance(checked, Refusal):
        refuse(checked, what=f"training/{spec.product}.py does not keep the trainer contract")
    table = LiveTable(
        lambda: view_sweep(project.ledger, request.sweep_id, now_us=project.clock.now_us()), is_quiet=as_json
    )
    with (
        open_mirror(project.places, clock=project.clock) as mirror,
        table,
        asking_first(lambda: wish_stop(project.ledger, request.sweep_id), say=table.say, text=STOPPING),
    ):
        outcome = launch_sweep(
            project.places,
            request,
            version=version,
            ledger=project.ledger,
            clock=project.clock,
            ids=project.ids,
            leases=open_lease_queue(project.places, project.ledger, project.clock, project.ids),
            mirror=mirror,
            say=table.say,
        )
    if isinstance(outcome, Refusal):
        refuse(outcome, what=f"{request.sweep_id} has no winner")
    _show_outcome(project, outcome, as_json=as_json)


def _request(project: Project, spec: SweepSpec) -> SweepRequest:
    from mlops.budgets.opening import find_person
    from mlops.provenance.git_repository import open_repository
    from mlops.training.launch import load_version, make_request

    version = load_version(project.places, spec)
    tags = {"mlops.commit": open_repository(project.places.root).head_commit()}
    return make_request(project.places, spec, version=version, tags=tags, spender=find_person())


def _show_plan(project: Project, spec: SweepSpec, *, hint: str | None, as_json: bool) -> None:
    from mlops.training.cost import describe_cost
    from mlops.units import parse_duration

    try:
        hint_seconds = parse_duration(hint) if hint else None
    except ValueError as error:
        raise click.UsageError(f"--hint: {error}") from error
    cost = describe_cost(
        project.places, project.ledger, spec, clock=project.clock, ids=project.ids, hint_seconds=hint_seconds
    )
    request = _request(project, spec)
    plan = {
        "sweep_id": request.sweep_id,
        "trials": spec.trials,
        "epochs": spec.epochs,
        "groups": spec.groups,
        "workers": spec.workers,
        "accelerators": str(spec.accelerators),
        "budget": spec.budget,
        "sampler": spec.sampler,
        "pruner": spec.pruner.name,
        "parameters": sorted(spec.space),
        "dataset": request.dataset.digest,
        "cost": cost,
    }
    if as_json:
        emit_json(plan)
        return
    click.echo(f"would run {request.sweep_id}: {spec.trials} trials of {spec.epochs} epochs")
    click.echo(
        f"  on up to {spec.groups} groups of {spec.workers} workers, {spec.accelerators} each; budget {spec.budget}"
    )
    click.echo(f"  {spec.sampler} over {', '.join(spec.space)}; dataset {spec.dataset} {request.dataset.digest[7:19]}")
    click.echo(f"  costs {cost}")


def _show_outcome(project: Project, outcome: SweepOutcome, *, as_json: bool) -> None:
    from mlops.training.sweep_view import view_sweep

    view = view_sweep(project.ledger, outcome.sweep_id, now_us=project.clock.now_us())
    if as_json:
        emit_json(view.to_json())
        return
    click.echo("")
    click.echo(render_sweep(view))
    if outcome.ensemble is not None:
        joined = outcome.ensemble
        trained = f"{len(joined.trained)} trained now"
        click.echo(f"ensemble of {joined.members} isolated members, {trained}: {joined.weights_sha256[7:19]}")


def _winner(view: SweepView) -> str:
    if view.trains_members:
        return "none, members"
    return "" if view.winner is None else f"trial {view.winner}"
