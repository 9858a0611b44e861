"""`mlops budget`: show, set, forecast, simulate. Leaves to others: what any of it means (mlops/budgets)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlops.cli.rendering import PICTURE, emit_json, render_table
from mlops.clock import render_time
from mlops.errors import ProjectError
from mlops.units import Accelerators, parse_duration, parse_money, render_money

if TYPE_CHECKING:
    from mlops.budgets.overview import BudgetLine, Overview
    from mlops.budgets.prediction import Predictor
    from mlops.budgets.tree import BudgetNode, BudgetTree
    from mlops.project.opening import Project

_CLUSTER = re.compile(r"(\d{1,5})[x×](\d{1,5})")


@click.group()
def budget() -> None:
    """Show and set budgets; forecast and simulate."""


@budget.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str | None, as_json: bool) -> None:
    """Money, quotas, warnings and the queue of every budget; with NAME, also who changed that one."""
    from mlops.budgets.admission import load_queue
    from mlops.budgets.configuration import find_disagreements, load_applied
    from mlops.budgets.overview import load_history, load_overview
    from mlops.budgets.spec import find_oversubscriptions, load_budgets

    project = _open()
    files = load_budgets(project.places.budgets_folder)
    with project.ledger.read() as connection:
        notes = [*find_disagreements(connection, files), *find_oversubscriptions(load_applied(connection))]
        overview = load_overview(connection, now_us=project.clock.now_us())
        history = load_history(connection, name) if name else ()
        queue = load_queue(connection)
    if name is not None:
        _require(name, {line.name for line in overview.lines})
    if as_json:
        queued = [each.to_json() for each in queue]
        emit_json({**overview.to_json(), "history": history, "queue": queued, "notes": notes})
        return
    click.echo(_render_overview(overview, only=name))
    for change in history:
        click.echo(f"{render_time(change['at_us'])}  version {change['version']} by {change['who']}: {change['why']}")
    for waiting in queue:
        click.echo(f"{waiting.status} {waiting.group_id} ({waiting.budget}, {waiting.units / 1000:g} {waiting.kind})")
        if waiting.reason:
            click.echo(f"    {waiting.reason}")
    for note in notes:
        click.echo(f"note: {note}")


@budget.command("set")
@click.argument("name")
@click.option("--cap", help="Money per period, for instance '500 USD'.")
@click.option("--quota", multiple=True, help="Nominal accelerators of a kind, for instance 8xh100; repeatable.")
@click.option("--from-file", is_flag=True, help="What budgets/NAME.yaml says, though it is older; NAME may be rates.")
@click.option("--who", help="Who decides (default: your user name).")
@click.option("--why", required=True, help="Why; kept in the ledger.")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
def set_(
    *, name: str, cap: str | None, quota: tuple[str, ...], from_file: bool, who: str | None, why: str, dry_run: bool
) -> None:
    """Change a budget in the ledger at once; the file should follow."""
    from mlops.budgets.configuration import RATES, apply_file, load_applied, set_budget
    from mlops.budgets.opening import find_person
    from mlops.budgets.spec import load_budgets

    if not why.strip():
        raise click.UsageError("--why needs words: whoever asks later finds nothing else")
    if from_file and (cap is not None or quota):
        raise click.UsageError("--from-file takes all from the file: give no --cap and no --quota")
    project = _open()
    with project.ledger.read() as connection:
        tree = load_applied(connection)
    files = load_budgets(project.places.budgets_folder)
    _require(name, {*files.by_name, RATES} if from_file else set(tree.by_name))
    if from_file and name == RATES:
        if files.rates.digest == tree.rates.digest:
            raise click.UsageError("nothing to change")
        click.echo("rates: the file replaces what holds")
    else:
        node = tree.by_name[name]
        changed = files.by_name[name] if from_file else _change(node, cap=cap, quota=quota, kinds=tree.rates.kinds)
        if changed == node:
            raise click.UsageError("nothing to change: give --cap or --quota" if not from_file else "nothing to change")
        _echo_change(project, tree, node, changed)
    if dry_run:
        click.echo("dry run: nothing was changed")
    elif from_file:
        apply_file(project.ledger, files, name, who=who or find_person(), why=why)
        click.echo("applied from its file")
    else:
        set_budget(project.ledger, changed, who=who or find_person(), why=why)
        click.echo(f"applied; now change budgets/{name}.yaml as well, so that the file says the same")


def _change(node: BudgetNode, *, cap: str | None, quota: tuple[str, ...], kinds: frozenset[str]) -> BudgetNode:
    from mlops.budgets.money import to_milli
    from mlops.budgets.spec import MOST_ACCELERATORS
    from mlops.budgets.tree import Quota

    changed = replace(node, cap_micro_usd=_parse(parse_money, cap)) if cap is not None else node
    for text in quota:
        shape = _parse(Accelerators.parse, text)
        if shape.kind not in kinds:
            raise click.UsageError(f"--quota {text}: unknown accelerator kind; rates.yaml prices {_join(kinds)}")
        if shape.count > MOST_ACCELERATORS or to_milli(shape.count) != shape.count * 1000:
            raise click.UsageError(f"--quota {text}: more than {MOST_ACCELERATORS:,}, or finer than a thousandth")
        old = changed.quotas.get(shape.kind, Quota(0))
        quotas = {**changed.quotas, shape.kind: replace(old, nominal=to_milli(shape.count))}
        changed = replace(changed, quotas=quotas)
    return changed


def _echo_change(project: Project, tree: BudgetTree, node: BudgetNode, changed: BudgetNode) -> None:
    """What was and what will be, and what follows that nobody may have meant."""
    from mlops.budgets.overview import load_overview
    from mlops.budgets.spec import find_oversubscriptions

    before, after = (
        render_money(it.cap_micro_usd) if it.cap_micro_usd is not None else "no cap" for it in (node, changed)
    )
    if before != after:
        click.echo(f"{node.name}: cap {before} -> {after} per {changed.period}")
    for kind in sorted({*node.quotas, *changed.quotas}):
        old, new = (it.quotas[kind].nominal / 1000 if kind in it.quotas else 0 for it in (node, changed))
        if old != new:
            click.echo(f"{node.name}: quota of {kind} {old:g} -> {new:g}")
    with project.ledger.read() as connection:
        lines = {line.name: line for line in load_overview(connection, now_us=project.clock.now_us()).lines}
    committed = lines[node.name].charged_micro_usd + lines[node.name].reserved_micro_usd
    if changed.cap_micro_usd is not None and before != after and committed >= changed.cap_micro_usd:
        click.echo(f"note: {render_money(committed)} is spent or prepaid already, so nothing new can start")
    then = replace(tree, nodes=tuple(changed if it.name == node.name else it for it in tree.nodes))
    for note in find_oversubscriptions(then):
        click.echo(f"note: {note}")


@budget.command()
@click.argument("name")
@click.option("--trials", type=click.IntRange(1, 1_000_000), required=True, help="Trials still to come.")
@click.option("--at-once", type=click.IntRange(1, 100_000), default=1, show_default=True)
@click.option("--accelerators", required=True, help="Per trial, for instance 2xh100.")
@click.option("--hint", help="Expected time per trial, for instance 20min; without it, history is used.")
@click.option("--history", default="", help="Sweeps whose ended leases count as history: a prefix of their ids.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def forecast(
    *, name: str, trials: int, at_once: int, accelerators: str, hint: str | None, history: str, as_json: bool
) -> None:
    """P50 and P90 of a sweep's cost and end, and whether budget NAME holds it."""
    from mlops.budgets.planning import forecast_for

    seconds = _parse(parse_duration, hint) if hint else None
    if seconds == 0:
        raise click.UsageError("--hint: a trial takes longer than nothing")
    project = _open()
    with project.ledger.read() as connection:
        result, holdings = forecast_for(
            connection,
            budget=name,
            trials=trials,
            at_once=at_once,
            accelerators=_parse(Accelerators.parse, accelerators),
            hint_seconds=seconds,
            history_prefix=history,
            now_us=project.clock.now_us(),
        )
    if as_json:
        emit_json({"forecast": vars(result), "budgets": [vars(each) for each in holdings]})
        return
    click.echo(f"from {result.basis}")
    click.echo(f"cost  P50 {render_money(result.cost_p50)}, P90 {render_money(result.cost_p90)}")
    click.echo(f"time  P50 {result.seconds_p50 / 3600:.2f} h, P90 {result.seconds_p90 / 3600:.2f} h")
    for each in holdings:
        says = "holds" if each.holds_p90 else "holds P50 only" if each.holds_p50 else "does not hold"
        click.echo(f"{each.scope} has {render_money(max(each.left_micro_usd, 0))} left: {says}")
    if not holdings:
        click.echo(f"neither {name} nor a budget above it has a cap: nothing limits the cost")


@budget.command()
@click.argument("trace", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--cluster", default="8x8", show_default=True, help="Nodes x accelerators.")
@click.option(
    "--durations", default="exact", show_default=True, help="What the rule believes: exact, learned or noisy:SIGMA."
)
@click.option("--restart", default="30s", show_default=True, help="What each start costs on its accelerators.")
@click.option("--plot", type=PICTURE, help="Write use over time as .svg or .png.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def simulate(*, trace: Path, cluster: str, durations: str, restart: str, plot: Path | None, as_json: bool) -> None:
    """Replay TRACE (a Muri trace, or the documented CSV) through the rule that runs live."""
    from mlops.budgets.simulate import make_cluster
    from mlops.budgets.simulate import simulate as replay
    from mlops.budgets.state import Settings
    from mlops.budgets.trace import read_trace

    match = _CLUSTER.fullmatch(cluster)
    if match is None or not int(match[1]) or not int(match[2]):
        raise click.UsageError(f"--cluster {cluster!r}: write nodes x accelerators, for instance 8x8")
    jobs = read_trace(trace)
    kinds = sorted({job.kind for job in jobs}) or ["gpu"]
    nodes = tuple(
        replace(node, name=f"{kind}-{node.name}")
        for kind in kinds
        for node in make_cluster(int(match[1]), int(match[2]), kind=kind)
    )
    settings = Settings(restart_us=round(_parse(parse_duration, restart) * 1_000_000))
    result = replay(jobs, nodes, predictor=_make_predictor(durations), settings=settings)
    figures = result.to_json()
    if plot is not None:
        from mlops.budgets.plot import write_plot

        capacity = sum(node.units for node in nodes) / 1000
        write_plot(result, plot, capacity=capacity, title=f"{trace.name} on {cluster}, durations {durations}")
    if as_json:
        emit_json(figures)
        return
    rows = [(key, f"{value:,.3f}".rstrip("0").rstrip(".")) for key, value in figures.items()]
    click.echo(render_table(("measure", "value"), rows))
    for job_id, reason in result.refused:
        click.echo(f"refused {job_id}: {reason}")


def _make_predictor(text: str) -> Predictor:
    from mlops.budgets.learned import Learned
    from mlops.budgets.prediction import Exact, Noisy

    name, _, sigma = text.partition(":")
    makers: dict[str, Any] = {"exact": Exact, "learned": Learned}
    if name in makers and not sigma:
        made: Predictor = makers[name]()
        return made
    if name == "noisy" and re.fullmatch(r"\d+(\.\d+)?", sigma):
        return Noisy(float(sigma))
    raise click.UsageError(f"--durations {text!r}: write exact, learned or noisy:SIGMA, for instance noisy:0.5")


def _open() -> Project:
    from mlops.budgets.opening import open_lease_book, settle_expired
    from mlops.project.opening import open_project

    project = open_project()
    open_lease_book(project.places, project.ledger, project.clock, project.ids)
    settle_expired(project.ledger, project.clock, project.ids)
    return project


def _require(name: str, known: set[str]) -> None:
    if name not in known:
        raise ProjectError(f"there is no budget {name!r}", hint=f"known budgets: {_join(known)}")


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _parse(parser: Any, text: str) -> Any:
    try:
        return parser(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _render_overview(overview: Overview, *, only: str | None) -> str:
    lines = [line for line in overview.lines if only in (None, line.name)]
    rows = [_money_row(line, depth=line.depth if only is None else 0) for line in lines]
    parts = [render_table(("budget", "USD cap", "spent", "prepaid", "left", "runs out"), rows)]
    quotas = [
        (line.name, quota.kind, f"{quota.nominal:g}", f"{quota.used:g}", f"{quota.borrowed:g}", f"{quota.lent:g}")
        for line in lines
        for quota in line.quotas
    ]
    if quotas:
        parts.append(render_table(("quota of", "kind", "nominal", "used", "borrowed", "lent"), quotas))
    parts.extend(f"{line.name}: in force: {', '.join(line.actions)}" for line in lines if line.actions)
    for notice in overview.warnings:
        tried = f"not delivered after {notice.attempts} tries {notice.last_error}".rstrip()
        state = "delivered" if notice.delivered_us else tried
        parts.append(f"{render_time(notice.crossed_us)}  {notice.text} ({state})")
    return "\n\n".join(parts)


def _money_row(line: BudgetLine, *, depth: int) -> tuple[str, ...]:
    committed = line.charged_micro_usd + line.reserved_micro_usd
    cap = "-" if line.cap_micro_usd is None else f"{render_cents(line.cap_micro_usd, ROUND_FLOOR)}/{line.period}"
    left = "-" if line.cap_micro_usd is None else render_cents(line.cap_micro_usd - committed, ROUND_FLOOR)
    ends = render_time(line.exhausted_us)[:10] if line.exhausted_us else "-"
    spent, prepaid = (render_cents(it, ROUND_CEILING) for it in (line.charged_micro_usd, line.reserved_micro_usd))
    return "  " * depth + line.name, cap, spent, prepaid, left, ends


def render_cents(micro_usd: int, rounding: str) -> str:
    """Never `0.00` of what was spent, nor `2,000.00` left where a little of it is gone."""
    return f"{(Decimal(micro_usd) / 1_000_000).quantize(Decimal('0.01'), rounding=rounding):,}"
