"""`mlops dataset`: import, add, list, show, verify and diff versions. Leaves to others: decisions (mlops/datasets)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlops.cli.people import read_ids
from mlops.cli.rendering import PICTURE, emit_json, render_table
from mlops.errors import EXIT_REFUSED, DatasetError

if TYPE_CHECKING:
    from mlops.datasets.importing import ImportOutcome

DAMAGE_SHOWN = 20
JSON = click.option("--json", "is_json", is_flag=True, help="Print JSON.")


@click.group()
def dataset() -> None:
    """Import, list, show and verify dataset versions."""


@dataset.command("import")
@click.argument("name")
@click.option("--accept-changes", is_flag=True, help="Pin the new version when it differs from the pinned one.")
@click.option("--dry-run", is_flag=True, help="Only say what would be imported.")
@JSON
def import_(name: str, *, accept_changes: bool, dry_run: bool, is_json: bool) -> None:
    """Make the version that datasets/NAME.yaml describes, push it and pin it in datasets.dvc."""
    from mlops.datasets.importing import import_dataset
    from mlops.datasets.recipe import load_recipe
    from mlops.project.opening import open_project  # SQLAlchemy: 0.2 s

    places = open_project().places
    if dry_run:
        recipe = load_recipe(places, name)
        click.echo(f"would import {', '.join(file.path for file in recipe.source.files)} as dataset {name}")
        return
    outcome = import_dataset(
        places, name, accept_changes=accept_changes, progress=lambda line: click.echo(line, err=True)
    )
    _show_outcome(name, outcome, is_json=is_json)


@dataset.command("add")
@click.argument("name")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only say what would be added.")
@JSON
def add(name: str, files: tuple[Path, ...], *, dry_run: bool, is_json: bool) -> None:
    """Add raw FILES to dataset NAME: its recipe names them from then on, and the version with their rows is pinned."""
    from mlops.datasets.adding import add_files, plan_addition
    from mlops.project.opening import open_project  # SQLAlchemy: 0.2 s

    places = open_project().places
    if dry_run:
        _, added = plan_addition(places, name, files)
        click.echo(f"would add {', '.join(added)} to dataset {name}")
        return
    outcome = add_files(places, name, files, progress=lambda line: click.echo(line, err=True))
    _show_outcome(name, outcome, is_json=is_json)


def _show_outcome(name: str, outcome: ImportOutcome, *, is_json: bool) -> None:
    version = outcome.version
    summary = {
        "dataset": name,
        "digest": version.digest,
        "dvc_digest": version.dvc_digest,
        "is_unchanged": outcome.is_unchanged,
        "differences": list(outcome.differences),
        "rows": {split: sum(s.rows for s in version.manifest.shards_of(split)) for split in version.manifest.splits},
        "shards": len(version.manifest.shards),
        "rows_in_train_and_test": outcome.rows_in_train_and_test,
        "rows_refused": outcome.rows_refused,
        "leaks": list(outcome.leaks),
    }
    if is_json:
        emit_json(summary)
        return
    rows = ", ".join(f"{split} {count}" for split, count in sorted(summary["rows"].items()))  # type: ignore[attr-defined]
    click.echo(f"{name} {version.digest} ({'already there' if outcome.is_unchanged else 'imported'})")
    click.echo(f"  {version.manifest.rows} rows ({rows}) in {len(version.manifest.shards)} shards")
    for line in outcome.differences:
        click.echo(f"  changed: {line}")
    for line in outcome.leaks:
        click.echo(f"  note: {line}")
    if outcome.rows_refused:
        click.echo(f"  note: {outcome.rows_refused} rows of withdrawn people were kept out")
    if outcome.rows_in_train_and_test:
        click.echo(f"  note: {outcome.rows_in_train_and_test} test rows have the same values as a train row")


@dataset.command("list")
@JSON
def list_(*, is_json: bool) -> None:
    """Datasets with their pinned versions."""
    from mlops.datasets.listing import list_datasets
    from mlops.project.opening import open_project  # SQLAlchemy: 0.2 s

    found = list_datasets(open_project().places)
    if is_json:
        emit_json(found)
    else:
        click.echo(
            render_table(
                ["dataset", "rows", "bytes", "version"],
                [
                    [
                        r["dataset"],
                        r["rows"] or "-",
                        r["bytes"] or "-",
                        r["digest"] or r["dvc_digest"] or "not imported",
                    ]
                    for r in found
                ],
            )
        )


@dataset.command("show")
@click.argument("name")
@JSON
def show(name: str, *, is_json: bool) -> None:
    """Columns, roles, splits, groups of people and credit of a dataset's pinned version."""
    from mlops.datasets.describing import describe_version, find_consumers  # pyarrow: 0.2 s
    from mlops.datasets.version import load_dataset_version
    from mlops.project.opening import open_project  # SQLAlchemy: 0.2 s

    project = open_project()
    description = describe_version(load_dataset_version(project.places, name))
    consumers = find_consumers(project.ledger, description.version)
    if is_json:
        emit_json({**description.to_json(), "consumers": consumers})
        return
    click.echo(description.render_text())
    click.echo(f"  used by   {len(consumers)} steps")
    for step in consumers[:10]:
        click.echo(f"    {step['finished']} {step['kind']} of {step['product']} ({step['step']})")


@dataset.command("verify")
@click.argument("name")
@click.option("--sweep", "is_sweeping", is_flag=True, help="Remove purged objects that a stale clone pushed again.")
@JSON
def verify(name: str, *, is_sweeping: bool, is_json: bool) -> None:
    """Hash every object of the pinned version wherever it lies; exit 1 when something is missing or changed."""
    from mlops.datasets.parts import require_part_pins
    from mlops.datasets.returned import find_returned
    from mlops.datasets.verifying import find_damage, pinned_digest
    from mlops.project.opening import open_project  # SQLAlchemy: 0.2 s

    places = open_project().places
    require_part_pins(places, name)
    dvc_digest = pinned_digest(places, name)
    if is_sweeping:
        from mlops.datasets.forgetting import sweep_returned  # DVC: 0.3 s

        for line in sweep_returned(places, name):
            click.echo(f"swept {line}", err=True)
    broken = find_damage(places, name, dvc_digest=dvc_digest, hash_bytes=1 << 62)
    returned = tuple(f"{path}: a purged object that came back" for path in find_returned(places, name))
    damage = returned + broken
    if is_json:
        emit_json({"dataset": name, "dvc_digest": dvc_digest, "damage": list(damage)})
    elif not damage:
        click.echo(f"{name} {dvc_digest}: every digest holds, in cache, remotes and workspace")
    for line in () if is_json else damage[:DAMAGE_SHOWN]:
        click.echo(f"  - {line}", err=True)
    if len(damage) > DAMAGE_SHOWN and not is_json:
        click.echo(f"  … and {len(damage) - DAMAGE_SHOWN} more (--json names all)", err=True)
    if returned:
        click.echo(f"hint: mlops dataset verify {name} --sweep removes what came back", err=True)
    if broken:
        click.echo(f"hint: mlops dataset import {name} stores again what is missing or changed", err=True)
    if damage:
        raise click.exceptions.Exit(EXIT_REFUSED)


@dataset.command("diff")
@click.argument("name")
@click.argument("before")
@click.argument("after", required=False)
@click.option("--plot", type=PICTURE, help="Draw the drift of every column as .svg or .png.")
@JSON
def diff(name: str, before: str, after: str | None, *, plot: Path | None, is_json: bool) -> None:
    """What differs between two versions of NAME: BEFORE and AFTER (default: the pinned one)."""
    from mlops.datasets.comparing import compare_versions
    from mlops.datasets.drift import draw_drift, measure_drift  # pyarrow: 0.2 s
    from mlops.datasets.tombstones import load_purged
    from mlops.datasets.version import load_dataset_version
    from mlops.project.opening import open_project  # SQLAlchemy: 0.2 s

    places = open_project().places
    first = load_dataset_version(places, name, revision=before)
    second = load_dataset_version(places, name, revision=after)
    lines = compare_versions(first, second)
    shards = {shard.md5 for version in (first, second) for shard in version.manifest.shards}
    gone = len(shards & load_purged(places, name))
    if gone and plot:
        raise DatasetError(
            f"no drift can be drawn: {gone} shards were purged, since people in them withdrew", hint="leave out --plot"
        )
    drifts = measure_drift(first, second) if lines and not gone else ()
    if plot:
        draw_drift(drifts, plot, title=f"{name}: {first.digest[7:19]} to {second.digest[7:19]}")
    if is_json:
        drift = {one.column: one.distance for one in drifts}
        versions = {"before": first.digest, "after": second.digest}
        emit_json({"dataset": name, **versions, "differences": list(lines), "drift": drift})
        return
    click.echo("\n".join(lines) or f"{first.digest} is the same version")
    if gone:
        click.echo(f"drift is not measured: {gone} shards were purged, since people in them withdrew")
    for one in drifts:
        if one.distance > 0:
            click.echo(f"drift {one.column}: {one.distance:.4f} ({one.rows_before} rows, then {one.rows_after})")


@dataset.command("find")
@click.argument("name")
@click.option("--subject", "is_subject", is_flag=True, required=True, help="Read a person's id from standard input.")
@JSON
def find(name: str, *, is_subject: bool, is_json: bool) -> None:
    """Which shards of which versions hold a person; the id comes on standard input and is never shown or kept."""
    from mlops.datasets.forgetting import find_holdings  # pyarrow and DVC: 0.5 s
    from mlops.datasets.subjects import hash_subject, load_subject_key
    from mlops.datasets.tombstones import load_tombstones
    from mlops.datasets.version import load_dataset_version
    from mlops.project.opening import open_project  # SQLAlchemy: 0.2 s

    places = open_project().places
    key = load_subject_key(places, load_dataset_version(places, name).schema.subject_key)
    ids = read_ids()
    if len(ids) != 1:
        raise click.UsageError(f"give one subject id on standard input, not {len(ids)}")
    subject = hash_subject(ids[0], key=key)
    holdings = find_holdings(places, name, subject)
    is_withdrawn = subject in load_tombstones(places, name)
    if is_json:
        found = [{"version": h.digest, "shard": h.shard.relpath, "rows": h.rows} for h in holdings]
        emit_json({"dataset": name, "is_withdrawn": is_withdrawn, "holdings": found})
        return
    click.echo(f"{sum(h.rows for h in holdings)} rows in {len(holdings)} shards" + (", withdrawn" * is_withdrawn))
    for holding in holdings:
        click.echo(f"  {holding.digest}  {holding.shard.relpath}  {holding.rows} rows")
