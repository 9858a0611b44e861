"""`mlops trace REF`: back from a version to everything it was made of."""

from __future__ import annotations

import click

from mlops.cli.rendering import emit_json


@click.command()
@click.argument("reference", metavar="REF")
@click.option("--shards", "is_all_shards", is_flag=True, help="List every shard of the datasets.")
@click.option("--json", "as_json", is_flag=True, help="Print steps, edges, facts and shards as JSON.")
def trace(reference: str, *, is_all_shards: bool, as_json: bool) -> None:
    """Walk back from REF to dataset version, shards, code commit, parameters and leases.

    REF is sha256:DIGEST, PRODUCT@NUMBER, PRODUCT@ALIAS, ENVIRONMENT, run:ID, dataset:NAME[@DIGEST] or commit:HASH.
    """
    from mlops.overview.trace import render_trace, trace_reference  # here: --help needs none of it
    from mlops.project.opening import open_project
    from mlops.provenance.reference import parse_reference

    found = trace_reference(open_project(), parse_reference(reference))
    if as_json:
        emit_json(found.to_json())
    else:
        click.echo(render_trace(found, shown_shards=1 << 62 if is_all_shards else 5))
