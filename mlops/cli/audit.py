"""`mlops audit`: verify signatures and digests of a chain."""

from __future__ import annotations

import click

from mlops.cli.rendering import emit_json
from mlops.errors import EXIT_REFUSED


@click.group()
def audit() -> None:
    """Verify signatures and digests of a chain."""


@audit.command()
@click.argument("reference", metavar="REF")
@click.option("--long", "is_long", is_flag=True, help="Show every link, not only broken ones.")
@click.option("--json", "as_json", is_flag=True, help="Print every link as JSON.")
def verify(reference: str, *, is_long: bool, as_json: bool) -> None:
    """Check every signature, digest and event behind REF; exit 1 and name the broken links if one does not hold.

    REF is written as for `mlops trace`. Of a model version its image and probe are checked too.
    """
    from mlops.overview.audit import render_chain_report, verify_reference  # here: --help needs none of it
    from mlops.project.opening import open_project
    from mlops.provenance.reference import parse_reference

    report = verify_reference(open_project(), parse_reference(reference))
    if as_json:
        emit_json(report.to_json())
    else:
        click.echo(render_chain_report(report, is_long=is_long))
    if not report.is_verified:
        raise click.exceptions.Exit(EXIT_REFUSED)
