"""`mlops model explain`: why a model answered one row so. Leaves explaining to others (mlops/incidents)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlops.cli.rendering import emit_json, refuse, render_table
from mlops.errors import ProjectError, Refusal

if TYPE_CHECKING:
    from mlops.incidents.explanation import Told

SHOWN = 12
"""Grounds that are printed; `--json` has all."""


@click.command("explain")
@click.argument("reference")
@click.option("--product", help="Whose model, where several are behind REFERENCE.")
@click.option("--number", type=int, help="Which row of the request, from 0.")
@click.option("--prediction", metavar="ID", help="x-prediction-id of the answer; with --records.")
@click.option(
    "--records",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="What callers kept: JSON lines with `prediction` and `request`. The server itself keeps no inputs.",
)
@click.option("--training-rows", is_flag=True, help="Also the training rows that drove it; needs the role data-reader.")
@click.option("--key", "person", help="Whose key shows the role; needed when several people's keys lie here.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def explain(
    reference: str,
    product: str | None,
    number: int | None,
    prediction: str | None,
    records: Path | None,
    training_rows: bool,
    person: str | None,
    as_json: bool,
) -> None:
    """Explain the answer of REFERENCE to one row: a request, or one JSON object of inputs, on standard input."""
    from mlops.cli.approve import only_person
    from mlops.incidents.affected import find_model
    from mlops.incidents.explanation import explain_answer
    from mlops.incidents.request import read_row
    from mlops.project.opening import open_project
    from mlops.serving.server.contract import load_contract

    if (prediction is None) != (records is None):
        raise click.UsageError("--prediction and --records go together: the server keeps no inputs")
    if prediction is None and sys.stdin.isatty():
        raise click.UsageError("send the request on standard input, or name a kept one with --prediction and --records")
    body = sys.stdin.buffer.read() if records is None else _find_request(records, prediction or "")
    project = open_project()
    candidate = find_model(project, reference, product=product)
    row = read_row(body, load_contract(candidate.folder / "contract.json"), number=number)
    reader = (person or only_person(project.places.keys_folder)) if training_rows else None
    told = explain_answer(project, candidate, row, reader=reader)
    if isinstance(told, Refusal):
        refuse(told, what="training rows are not shown")
    if as_json:
        emit_json(told.to_json())
    else:
        _print(told)


def _find_request(records: Path, prediction: str) -> bytes:
    """The request that a caller kept under a prediction id.

    Raises:
        ProjectError: Not there, or the file is not JSON lines.
    """
    for number, line in enumerate(records.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            content: Any = json.loads(line) if line.strip() else {}
        except ValueError as error:
            raise ProjectError(f"{records}:{number} is no JSON: {error}") from error
        if isinstance(content, dict) and content.get("prediction") == prediction and "request" in content:
            return json.dumps(content["request"]).encode()
    raise ProjectError(
        f"{records} has no prediction {prediction!r}",
        hint='each line is {"prediction": "<x-prediction-id>", "request": {…}}, written by whoever asked',
    )


def _print(told: Told) -> None:
    one = told.explanation
    click.echo(f"answer      {one.answer}; {one.favourable} has {100 * one.probability:.1f} %")
    click.echo(f"model       {told.model[7:19]}")
    click.echo("")
    rows = [(ground.column, ground.value, f"{ground.log_odds:+.3f}") for ground in one.grounds[:SHOWN]]
    click.echo(render_table(("because of", "being", f"log-odds of {one.favourable}"), rows))
    click.echo(f"an average person has {one.base:+.3f}, this one {one.log_odds:+.3f}; ", nl=False)
    click.echo(f"the grounds add up to within {one.completeness_error:.1g}")
    click.echo("")
    if one.counterfactual is None:
        best = "" if one.best_probability is None else f"; at best {100 * one.best_probability:.1f} % {one.favourable}"
        click.echo(f"what would change it: {one.counterfactual_text}{best}")
    else:
        steps = ", ".join(f"{column} {now} → {then}" for column, now, then in one.counterfactual.changes)
        chance = f"{100 * one.counterfactual.probability:.1f} % {one.favourable}"
        click.echo(f"what would change it: {steps}; then {one.counterfactual.answer} ({chance})")
    click.echo("")
    if told.training_rows is None:
        click.echo(f"training rows behind it: {told.training_text}")
        return
    lines = [
        (
            f"{row.shard}#{row.number}",
            f"{row.log_odds:+.3f} ± {row.error:.3f}",
            f"{row.p_value:.2g}",
            ", ".join(row.values.values()),
        )
        for row in told.training_rows
    ]
    click.echo(render_table(("training row", "log-odds", "by luck", "values"), lines))
    click.echo(
        "“by luck”: chance that any row of the audit pool looks so clear; near 1 the sweep has too few trials to tell"
    )
