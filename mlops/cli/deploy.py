"""`mlops deploy`: serve the desired state on this machine, show it, render it. Leaves doing so to mlops/deploy."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlops.cli.rendering import emit_json, refuse, render_table
from mlops.errors import MlopsError, Reason, Refusal

if TYPE_CHECKING:
    from mlops.deploy.environment import EnvironmentSpec
    from mlops.deploy.reconciler import ReconcileOutcome
    from mlops.deploy.site import Site


@click.group()
def deploy() -> None:
    """Serve the desired state; show and render it."""


@deploy.command()
@click.argument("environment", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def status(environment: str | None, *, as_json: bool) -> None:
    """What serves where since when."""
    from mlops.cli.deploying import open_site  # loads SQL and pydantic
    from mlops.deploy.status import load_environment_status

    site = open_site()
    found = [load_environment_status(site, rules) for rules in _load_rules(site, environment)]
    if as_json:
        emit_json([entry.to_json() for entry in found])
        return
    rows: list[tuple[object, ...]] = []
    for entry in found:
        for product in entry.products:
            for version in product.serving or (None,):
                told = (version.number, f"{version.share} %", version.since) if version else ("-", "-", "-")
                way = f"{product.last_known_good or '-'}{' (warm)' if product.is_warm else ''}"
                state = "as desired" if product.is_converged else f"desired: {', '.join(product.desired)}"
                state = f"{product.outage}; `mlops deploy reconcile` starts it; {state}" if product.outage else state
                healthy = "-" if product.healthy_instances is None else product.healthy_instances
                rows.append((entry.environment, product.product, *told, healthy, way, product.address, state))
        if not entry.products:
            rows.append((entry.environment, "-", "-", "-", "-", "-", "-", "-", "nothing was promoted here yet"))
    header = ("environment", "product", "version", "share", "since", "healthy", "way back", "address", "state")
    click.echo(render_table(header, rows))
    for entry in found:
        if entry.problem:
            click.echo(f"problem: {entry.problem}")
        for product in entry.products:
            if product.last_failure:
                click.echo(f"last failure of {product.product} in {entry.environment}: {product.last_failure}")


@deploy.command()
@click.argument("environment", required=False)
@click.option("--watch", is_flag=True, help="Keep doing so until interrupted.")
@click.option("--dry-run", is_flag=True, help="Say what should serve, and change nothing.")
def reconcile(environment: str | None, *, watch: bool, dry_run: bool) -> None:
    """Make this machine serve the desired state of ENVIRONMENT (default: of every one)."""
    from mlops.cli.deploying import make_reconciler, open_site  # loads SQL and pydantic

    site = open_site()
    every = _load_rules(site, environment)
    if dry_run:
        _show_desired(site, every)
        return
    if watch:
        _watch(site, every)
        return
    reasons: list[Reason] = []
    for rules in every:
        outcome = make_reconciler(site, rules).run_once()
        reasons += outcome.reasons
        _say_converged(outcome)
        _open_incidents(site, rules.name)
    if reasons:
        refuse(Refusal(tuple(reasons)), what="not everything serves as was desired")


@deploy.command()
@click.argument("environment")
@click.option("--kind", type=click.Choice(["plain", "kserve"]), default="plain", show_default=True)
@click.option("--registry", default="registry.example.org", show_default=True, help="Where the cluster pulls from.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder to write to; default: print.")
def render(environment: str, kind: str, registry: str, output: Path | None) -> None:
    """Kubernetes manifests for the same desired state, checked against their schemas."""
    from mlops.cli.deploying import open_site  # loads SQL and pydantic
    from mlops.deploy.environment import load_environment
    from mlops.deploy.kubernetes import render_manifests, render_yaml
    from mlops.deploy.state_keeper import verify_desired

    site = open_site()
    state = verify_desired(site, environment)
    if isinstance(state, Refusal):
        refuse(state, what=f"the desired state of {environment} does not count")
    rules = load_environment(site.places, environment)
    text = render_yaml(render_manifests(state, rules, kind=kind, registry=registry))
    if output is None:
        click.echo(text, nl=False)
        return
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{environment}-{kind}.yaml"
    path.write_text(text, encoding="utf-8")
    click.echo(f"wrote {path}")


@deploy.command()
@click.argument("environment", required=False)
@click.option("--dry-run", is_flag=True, help="Say what would be stopped.")
def stop(environment: str | None, *, dry_run: bool) -> None:
    """Stop what serves on this machine; `reconcile` starts it again."""
    from mlops.cli.deploying import make_reconciler, open_site  # loads SQL and pydantic
    from mlops.deploy.reconciler import stop_serving

    site = open_site()
    told = 0
    for rules in _load_rules(site, environment):
        for line in stop_serving(make_reconciler(site, rules), is_dry_run=dry_run):
            told += 1
            click.echo(line)
    if not told:
        click.echo("nothing runs on this machine")


def _load_rules(site: Site, environment: str | None) -> list[EnvironmentSpec]:
    from mlops.deploy.environment import list_environments, load_environment

    names = [environment] if environment else list_environments(site.places)
    return [load_environment(site.places, name) for name in names]


def _show_desired(site: Site, every: list[EnvironmentSpec]) -> None:
    from mlops.deploy.state_keeper import find_hand_edit, load_desired_state

    reasons: list[Reason] = []
    for rules in every:
        edited = find_hand_edit(site, rules.name)
        reasons += edited.reasons if edited is not None else ()
        for release in load_desired_state(site, rules.name).products:
            shares = ", ".join(f"version {version.number} at {version.share} %" for version in release.versions)
            click.echo(f"{rules.name} should serve {release.product}: {shares}")
    if reasons:
        refuse(Refusal(tuple(reasons)), what="a desired state was changed by hand")


def _watch(site: Site, every: list[EnvironmentSpec]) -> None:
    from mlops.cli.deploying import make_reconciler

    ending: list[int] = []

    def end(number: int, _frame: Any) -> None:
        ending.append(number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    watchers = [make_reconciler(site, rules).watch(is_ending=lambda: bool(ending)) for rules in every]
    click.echo(f"watching {', '.join(rules.name for rules in every)}; end with Ctrl-C, what serves goes on serving")
    told: dict[int, str] = {}
    while not ending:
        for number, watcher in enumerate(watchers):
            outcome = next(watcher, None)
            text = _describe(outcome)
            if text:
                _open_incidents(site, every[number].name)
            if text and told.get(number) != text:
                click.echo(text, err=True)
            told[number] = text


def _open_incidents(site: Site, environment: str) -> None:
    """A version that failed and was returned from is an incident; what an earlier, killed call left is opened, too."""
    from mlops.incidents.automatic import open_for_returns

    for row in open_for_returns(site, environment):
        click.echo(f"opened {row.incident_id}: {row.title}   (mlops incident list)", err=True)


def _describe(outcome: ReconcileOutcome | Refusal | MlopsError | None) -> str:
    if outcome is None:
        return ""
    if isinstance(outcome, MlopsError):
        return f"error: {outcome.message}" + (f"\nhint: {outcome.hint}" if outcome.hint else "")
    if isinstance(outcome, Refusal):
        return f"refused: {outcome.render_text()}"
    return "\n".join(f"{reason.code}: {reason.text}" for reason in outcome.reasons)


def _say_converged(outcome: ReconcileOutcome | Refusal) -> None:
    if isinstance(outcome, Refusal) or outcome.reasons:
        return
    if not outcome.products:
        click.echo(f"{outcome.environment}: nothing was promoted here yet")
    elif not any(product.actions for product in outcome.products):
        click.echo(f"{outcome.environment}: serves as desired, nothing to do")
