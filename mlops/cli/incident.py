"""`mlops incident`: open, list and close incidents. Leaves to others: what any of it means (mlops/incidents)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from mlops.cli.rendering import emit_json, refuse, render_table
from mlops.clock import render_time
from mlops.errors import Refusal

if TYPE_CHECKING:
    from mlops.incidents.opening import Opened
    from mlops.incidents.sql_incidents import IncidentRow


@click.group()
def incident() -> None:
    """Open, list and close incidents."""


@incident.command("open")
@click.argument("reference", metavar="REF")
@click.option(
    "--expect",
    required=True,
    help="What should hold: equals CLASS, is-not CLASS, bound LOW..HIGH, invariant COLUMN, monotone COLUMN [STEP].",
)
@click.option(
    "--severity",
    type=click.IntRange(1, 3),
    default=2,
    show_default=True,
    help="1 is worst: no wrong neighbour is tolerated.",
)
@click.option("--title", required=True, help="What went wrong, in a few words; no names.")
@click.option("--reason", required=True, help="Why it is wrong and how it was noticed; no names.")
@click.option("--product", help="Needed when several products are behind REF.")
@click.option("--prediction", default="", metavar="ID", help="x-prediction-id of the answer, for the record.")
@click.option("--row", default="", metavar="SHARD#N", help="A row of the dataset instead of standard input.")
@click.option("--number", type=click.IntRange(min=0), help="Which row of the request, from 0.")
@click.option(
    "--vary",
    multiple=True,
    metavar="COLUMN:CHANGE",
    help="What may vary around the case: age:5, plan:any, plan:basic,plus; repeatable.",
)
@click.option("--synthetic", is_flag=True, help="The row is made up already; keep it as it is.")
@click.option("--dry-run", is_flag=True, help="Show case, affected versions and plan; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def open_(
    *, reference: str, expect: str, vary: tuple[str, ...], synthetic: bool, dry_run: bool, as_json: bool, **given: Any
) -> None:
    """Report that REF answered wrongly; the request, as it was sent, stands on standard input.

    REF is what answered: ENVIRONMENT, PRODUCT@NUMBER, or sha256:DIGEST of image or model (x-model-digest).
    """
    from mlops.cli.deploying import open_site  # loads SQL and pydantic
    from mlops.incidents.opening import Report, open_incident
    from mlops.incidents.request import parse_change, parse_relation
    from mlops.project.opening import open_project

    relation, changes = parse_relation(expect), tuple(map(parse_change, vary))
    if not given["row"] and sys.stdin.isatty():
        raise click.UsageError("send the request on standard input, or name a row of the dataset with --row")
    body = b"" if given["row"] else sys.stdin.buffer.read()
    report = Report(reference, relation, vary=changes, is_synthetic=synthetic, body=body, **given)
    opened = open_incident(open_project(), open_site(), report, is_dry_run=dry_run)
    if isinstance(opened, Refusal):
        refuse(opened, what="no incident is opened")
    if as_json:
        emit_json(_opened_json(opened))
    else:
        _print_opened(opened, is_dry_run=dry_run)


@incident.command("list")
@click.argument("product", required=False)
@click.option("--all", "is_all", is_flag=True, help="Closed ones, too.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_(product: str | None, *, is_all: bool, as_json: bool) -> None:
    """Open incidents, the gravest and oldest first."""
    from mlops.incidents.sql_incidents import OPEN, list_incidents
    from mlops.project.opening import open_project

    project = open_project()
    if product is not None:
        project.require_product(product)
    with project.ledger.read() as connection:
        rows = list_incidents(connection, state=None if is_all else OPEN, product=product)
    if as_json:
        emit_json([_row_json(row) for row in rows])
        return
    if not rows:
        click.echo("no incident" if is_all else "no open incident")
        return
    header = ("incident", "severity", "state", "opened", "what")
    click.echo(
        render_table(header, [(r.incident_id, r.severity, r.state, render_time(r.opened_us), r.title) for r in rows])
    )
    for row in rows:
        if row.case_path and row.state == OPEN and not (project.places.root / row.case_path).is_file():
            click.echo(f"missing: {row.case_path}; `git checkout` it, or report the incident again", err=True)


@incident.command()
@click.argument("incident_id")
@click.option("--dry-run", is_flag=True, help="Say whether it could be closed.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def close(incident_id: str, *, dry_run: bool, as_json: bool) -> None:
    """Close an incident; needs a promoted release that passed its case."""
    from mlops.incidents.closing import close_incident
    from mlops.project.opening import open_project

    row = close_incident(open_project(), incident_id, is_dry_run=dry_run)
    if isinstance(row, Refusal):
        refuse(row, what=f"{incident_id} stays open")
    if as_json:
        emit_json(_row_json(row))
        return
    click.echo(f"{incident_id} {'could be closed' if dry_run and row.state != 'closed' else 'is closed'}")
    for environment, found in (row.evidence or {}).items():
        gate = f", gate {found['gate'][7:19]}: {found['verdict']} on the case" if "gate" in found else ""
        click.echo(f"  {environment} serves version {found['number']}{gate}")


def _row_json(row: IncidentRow) -> dict[str, object]:
    return {**{key: value for key, value in vars(row).items() if key != "key"}, "case_path": row.case_path}


def _opened_json(opened: Opened) -> dict[str, object]:
    return {
        "incident": _row_json(opened.incident),
        "is_new": opened.is_new,
        "case": opened.case.model_dump(mode="json"),
        "affected": opened.affected.to_json(),
        "rollbacks": [vars(offer) for offer in opened.rollbacks],
        "retrain": vars(opened.retrain),
    }


def _print_opened(opened: Opened, *, is_dry_run: bool) -> None:
    row, affected = opened.incident, opened.affected
    word = "would open" if is_dry_run and opened.is_new else "opened" if opened.is_new else f"known, {row.state}:"
    click.echo(f"{word} {row.incident_id} (severity {row.severity}): {row.title}")
    if is_dry_run:
        click.echo(row.case_text, nl=False)
    else:
        click.echo(f"  case          {row.case_path}, synthetic: nobody's row")
    told = [
        f"{row.product}@{v.number}{'' if v.is_asked else ' (its model is gone, not asked)'}" for v in affected.versions
    ]
    click.echo(f"  affected      {', '.join(told) or 'no version'}")
    for entry in affected.environments:
        click.echo(f"                version {entry.number} {_ROLES[entry.role]} {entry.environment}")
    for offer in opened.rollbacks:
        click.echo(f"  now           {offer.command or offer.environment}   ({offer.text})")
    plan = opened.retrain
    click.echo(
        f"  release       reuses {', '.join(plan.reused) or 'nothing'}; runs {', '.join(plan.to_run) or 'nothing'}"
    )
    click.echo(f"                {plan.advice}")
    if plan.cost:
        click.echo(f"  a new sweep   {plan.cost}")
    if not is_dry_run and row.state == "open":
        click.echo(f"  next          git add {row.case_path} && git commit, mlops release {row.product}, promote it,")
        click.echo(f"                then mlops incident close {row.incident_id}")


_ROLES = {"serves": "serves in", "desired": "is desired in", "way back": "is the way back in"}
