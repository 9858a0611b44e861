"""`mlops erasure`: requests to forget people, and the batch that carries them out. Leaves the work to mlops/erasure."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlops.cli.people import read_ids
from mlops.cli.rendering import emit_json, refuse, render_table
from mlops.errors import EXIT_REFUSED, Reason, Refusal

if TYPE_CHECKING:
    from mlops.erasure.sql_erasure import RequestRow
    from mlops.project.opening import Project

_STDIN = "Subject ids come on standard input, one a line; never as arguments, which other users of the machine can see."


@click.group()
def erasure() -> None:
    """Forget people: requests, batches, certificates. Subject ids come on standard input only."""


@erasure.command(epilog=_STDIN)
@click.argument("dataset")
@click.option("--unproven", is_flag=True, help="Identity is not proven yet: hold, and fence nobody, until `verify`.")
@click.option("--dry-run", is_flag=True, help="Read and check the ids, record nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipts as JSON.")
def request(dataset: str, *, unproven: bool, dry_run: bool, as_json: bool) -> None:
    """Record a request for each person on standard input, and fence them at once."""
    from mlops.erasure.requests import Submission, render_deadline, submit_requests
    from mlops.project.opening import open_project

    project = open_project()
    subjects = _read_people(project, dataset)
    if dry_run:
        click.echo(f"would record {len(subjects)} requests for {dataset}")
        return
    entries = [
        Submission(subject, "command", project.ids.new("nonce"), is_identity_proven=not unproven)
        for subject in subjects
    ]
    answers = [it for it in submit_requests(project, dataset, entries) if not isinstance(it, Refusal)]
    if as_json:
        emit_json([{"receipt_id": it.receipt_id, "deadline_us": it.deadline_us} for it in answers])
        return
    for it in answers:
        click.echo(f"{it.receipt_id}  due {render_deadline(it.deadline_us, now_us=project.clock.now_us())}")
    click.echo(f"next: mlops erasure run {dataset} --dry-run")


@erasure.command("list")
@click.argument("dataset", required=False)
@click.option("--all", "is_all", is_flag=True, help="Also those that are answered.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_(dataset: str | None, *, is_all: bool, as_json: bool) -> None:
    """Requests with their state and days left; no names."""
    from mlops.datasets.recipe import load_recipe
    from mlops.erasure.sql_erasure import OPEN_REQUESTS, list_requests
    from mlops.overview.open_matters import count_days_left
    from mlops.project.opening import open_project

    project = open_project()
    with project.ledger.read() as connection:
        rows = list_requests(connection, dataset=dataset, states=None if is_all else OPEN_REQUESTS)
    if dataset is not None and not rows:
        load_recipe(project.places, dataset)  # a name that is typed wrong must not look like one without requests
    if as_json:
        emit_json([_request_json(row) for row in rows])
        return
    now_us = project.clock.now_us()
    cells = [
        (
            row.request_id,
            row.dataset,
            row.state,
            f"{count_days_left(row.deadline_us, now_us=now_us):.1f}",
            row.channel,
            row.reason,
        )
        for row in rows
    ]
    header = ("request", "dataset", "state", "days left", "channel", "reason")
    click.echo(render_table(header, cells) if cells else "no open request")


@erasure.command()
@click.argument("reference", metavar="REQUEST|RECEIPT|BATCH")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def show(reference: str, *, as_json: bool) -> None:
    """One request (also by its receipt) or one batch, with its history."""
    from mlops.clock import render_time
    from mlops.erasure.sql_erasure import find_batch, find_request
    from mlops.errors import ProjectError
    from mlops.ledger.sql_events import load_events
    from mlops.project.opening import open_project

    project = open_project()
    with project.ledger.read() as connection:
        row = find_request(connection, reference)
        batch = find_batch(connection, row.batch_id if row and row.batch_id else reference)
        if row is None and batch is None:
            raise ProjectError(
                f"there is no request, receipt or batch {reference!r}", hint="`mlops erasure list --all`"
            )
        name = row.request_id if row else reference
        history = [(event.at_us, event.kind, event.body) for event in load_events(connection, subject=name)]
    if as_json:
        shown = {"request": _request_json(row) if row else None, "batch": vars(batch) if batch else None}
        emit_json({**shown, "history": [{"at_us": at, "kind": kind, "body": body} for at, kind, body in history]})
        return
    if row is not None:
        click.echo(
            f"{row.request_id}  {row.dataset}  {row.state}  due {render_time(row.deadline_us)}  {row.reason}".rstrip()
        )
    if batch is not None:
        click.echo(f"{batch.batch_id}  {batch.state}" + (f"  held up: {batch.note}" if batch.note else ""))
    for at_us, kind, _ in history:
        click.echo(f"  {render_time(at_us)}  {kind}")


def _moving(how: str, text: str, *, needs_reason: bool) -> Callable[..., None]:
    @erasure.command(how, help=text)
    @click.argument("request_id", metavar="REQUEST")
    @click.option("--reason", default="", required=needs_reason, help="Kept with the request.")
    @click.option("--dry-run", is_flag=True, help="Only say what would be done.")
    def command(request_id: str, *, reason: str, dry_run: bool) -> None:
        from mlops.erasure.requests import move_request
        from mlops.project.opening import open_project

        if dry_run:
            click.echo(f"would {how} {request_id}")
            return
        row = move_request(open_project(), request_id, how=how, reason=reason)
        if isinstance(row, Refusal):
            refuse(row, what=f"{request_id} is not changed")
        click.echo(f"{row.request_id} is {row.state}")

    return command


_moving(
    "verify", "The person's identity is proven: fence, and let the request join the next batch.", needs_reason=False
)
_moving("refuse", "The person's identity cannot be proven: end the request.", needs_reason=True)
_moving("hold", "A law asks to keep the rows: the request waits, the fence stays.", needs_reason=True)
_moving("release", "End a legal hold.", needs_reason=False)


@erasure.command()
@click.argument("dataset")
@click.option("--now", "is_now", is_flag=True, help="Do not wait for the window; needs --reason.")
@click.option(
    "--accept", "accepted", multiple=True, metavar="STORE: WHAT", help="Let it stay; named in the certificate."
)
@click.option("--reason", default="", help="Why now, or why it may stay; for the record.")
@click.option("--allow-dirty", is_flag=True, help="Retrain although files are uncommitted; this is recorded.")
@click.option("--dry-run", is_flag=True, help="Show who and what is affected, and the cost.")
@click.option("--json", "as_json", is_flag=True, help="Print the batch as JSON.")
def run(
    dataset: str,
    *,
    is_now: bool,
    accepted: tuple[str, ...],
    reason: str,
    allow_dirty: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Handle all open requests of DATASET as one batch: rewrite, retrain, gate, promote, purge, certify."""
    from mlops.budgets.outbox import deliver_due, log_sink, make_command_sink
    from mlops.deploy.erasure_rules import load_rules
    from mlops.erasure.preview import preview_run
    from mlops.erasure.project_work import ProjectWork
    from mlops.erasure.running import run_erasure
    from mlops.project.opening import open_project

    if (is_now or accepted) and not reason.strip():
        raise click.UsageError("--now and --accept need --reason")
    project = open_project()
    ordered = reason.strip() if is_now or accepted else ""

    def say(line: str) -> None:
        click.echo(line, err=as_json)

    work = ProjectWork(project, dataset, allow_dirty, say)
    if dry_run:
        preview = preview_run(project, dataset, work, ordered=ordered)
        if as_json:
            emit_json({"requests": preview.requests, "held": preview.held, "cost_micro_usd": preview.cost_micro_usd})
        else:
            click.echo(preview.render_text())
        return
    outcome = run_erasure(project, dataset, work, ordered=ordered, accepted=accepted, say=say)
    tell = load_rules(project.places).tell
    deliver_due(project.ledger, [log_sink, *([make_command_sink(tell)] if tell else [])], now_us=project.clock.now_us())
    if isinstance(outcome, Refusal):
        refuse(outcome, what=f"{dataset} is not worked on")
    if as_json:
        emit_json({"batch": vars(outcome.batch), "held": vars(outcome.held) if outcome.held else None})
    if outcome.held is not None and outcome.held.reasons[0].code != "nothing-open":
        refuse(outcome.held, what=f"{outcome.batch.batch_id} is held up at {outcome.batch.state}")
    if not as_json:
        click.echo(_render_end(outcome.held, outcome.batch.batch_id, outcome.requests))


@erasure.command(epilog=_STDIN)
@click.argument("dataset")
@click.option("--output", type=click.Path(path_type=Path), help="Write the rows there, sealed; the key is shown once.")
@click.option("--open", "sealed", type=click.Path(exists=True, path_type=Path), help="Open such a file; key on stdin.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def access(dataset: str, *, output: Path | None, sealed: Path | None, as_json: bool) -> None:
    """List the shards, models and environments that hold the person on standard input; export the rows, encrypted."""
    from mlops.erasure.access import find_person
    from mlops.files import write_atomically
    from mlops.project.opening import open_project
    from mlops.provenance.sealing import seal, unseal

    if sealed is not None:
        click.echo(unseal(sealed.read_bytes(), sys.stdin.read().strip()).decode(), nl=False)
        return
    project = open_project()
    subjects = _read_people(project, dataset)
    if len(subjects) != 1:
        raise click.UsageError("give one subject id")
    found = find_person(project, dataset, subjects[0])
    shown = found.to_json()
    if output is not None:
        content, key = seal(found.render_rows())
        write_atomically(output, content, mode=0o600)
        shown |= {"output": str(output), "key": key}
    if as_json:
        emit_json(shown)
        return
    for shard in found.shards:
        click.echo(
            f"{shard['rows']} rows in {shard['path']} of {shard['version'][:19]}" + " (pinned)" * shard["is_pinned"]
        )
    click.echo(f"models        {', '.join(found.models) or 'none'}")
    click.echo(f"environments  {', '.join(found.environments) or 'none'}")
    click.echo(f"requests      {', '.join(it['request'] + ' ' + it['state'] for it in found.requests) or 'none'}")
    if output is not None:
        click.echo(f"{len(found.rows)} rows are sealed in {output}; its key, shown once: {shown['key']}")
        click.echo(f"to read it: mlops erasure access {dataset} --open {output}   (key on standard input)")


@erasure.command(epilog=_STDIN)
@click.argument("dataset")
@click.option("--values", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Values, one a line.")
@click.option("--json", "as_json", is_flag=True, help="Print every finding as JSON.")
def scan(dataset: str, *, values: Path | None, as_json: bool) -> None:
    """Look for the people on standard input in every store of the project; exit 1 when something of them is left.

    Archives, tables, tensors, databases, image layers and git objects are opened. With --values also values that only
    these people have are looked for, wherever they stand.
    """
    from mlops.erasure.scanning import Needles, scan_project
    from mlops.project.opening import open_project

    project = open_project()
    try:
        wanted = values.read_text(encoding="utf-8-sig").split("\n") if values is not None else []
    except UnicodeDecodeError:
        raise click.UsageError(f"--values {values}: it is not UTF-8 text") from None
    needles = Needles(frozenset(_read_people(project, dataset)), frozenset(filter(None, map(str.strip, wanted))))
    found = scan_project(project, needles)
    matches = [finding for finding in found if finding.is_match]
    if as_json:
        emit_json([vars(finding) for finding in found])
    else:
        for finding in found:
            click.echo(f"{finding.what}  {finding.place}")
        unread = len(found) - len(matches)
        click.echo(f"{len(matches)} places hold something of them; {unread} could not be looked into")
    if matches:
        raise click.exceptions.Exit(EXIT_REFUSED)


@erasure.command()
@click.option("--port", type=click.IntRange(0, 65_535), default=8741, show_default=True, help="On 127.0.0.1.")
@click.option("--dry-run", is_flag=True, help="Only say who may ask.")
def serve(port: int, *, dry_run: bool) -> None:
    """Take signed requests of the tenants in deploy/erasure.yaml, on loopback."""
    from mlops.erasure.intake import open_intake, serve_intake
    from mlops.project.opening import open_project

    intake = open_intake(open_project())
    tenants = ", ".join(sorted(intake.rules.tenants)) or "nobody: deploy/erasure.yaml names no tenant"
    click.echo(f"http://127.0.0.1:{port}/v1/requests for {tenants}; datasets {', '.join(sorted(intake.keys))}")
    if not dry_run:
        serve_intake(intake, port=port)


@erasure.group()
def certificate() -> None:
    """Show, export and verify certificates."""


@certificate.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_certificates_(*, as_json: bool) -> None:
    """Every certificate, oldest first."""
    from mlops.clock import render_time
    from mlops.erasure.sql_erasure import list_certificates
    from mlops.project.opening import open_project

    with open_project().ledger.read() as connection:
        rows = list_certificates(connection)
    if as_json:
        emit_json([{name: value for name, value in vars(row).items() if name != "envelope"} for row in rows])
        return
    cells = [(row.number, row.dataset, render_time(row.at_us), row.digest[:19], row.batch_id) for row in rows]
    click.echo(render_table(("number", "dataset", "signed", "digest", "batch"), cells) if cells else "none yet")


@certificate.command("show")
@click.argument("number", type=int)
@click.option("--output", type=click.Path(path_type=Path), help="Write the signed file there instead.")
def show_certificate(number: int, *, output: Path | None) -> None:
    """One certificate, checked; or the signed file for whoever asks."""
    from mlops.erasure.sql_erasure import list_certificates
    from mlops.errors import ProjectError
    from mlops.files import write_atomically
    from mlops.project.opening import open_project

    project = open_project()
    with project.ledger.read() as connection:
        rows = {row.number: row for row in list_certificates(connection)}
    if number not in rows:
        raise ProjectError(f"there is no certificate {number}", hint="`mlops erasure certificate list`")
    if output is not None:
        write_atomically(output, rows[number].envelope)
        click.echo(f"wrote {output}")
        return
    before = rows.get(number - 1)
    _verify(rows[number].envelope, before.envelope if before else None, keys=(), as_json=False)


@certificate.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--key", "keys", multiple=True, help="Public key to trust, `ed25519:…`; default: this project's machines."
)
@click.option("--previous", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The one before it.")
@click.option("--json", "as_json", is_flag=True, help="Print what was checked as JSON.")
def verify(file: Path, *, keys: tuple[str, ...], previous: Path | None, as_json: bool) -> None:
    """Check a certificate's FILE offline: signature, chain, numbers; and say what it proves."""
    before = _read_envelope(previous) if previous else None
    _verify(_read_envelope(file), before, keys=keys, as_json=as_json)


def _read_envelope(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")  # what is no text is no envelope either


def _verify(text: str, before: str | None, *, keys: tuple[str, ...], as_json: bool) -> None:
    from mlops.deploy.chain_rules import load_machine_keyring
    from mlops.erasure.certificate import parse_certificate, render_certificate, verify_certificate
    from mlops.errors import ProjectError
    from mlops.project.opening import open_project
    from mlops.provenance.keyring import AcceptedKey, KeyRing

    if keys:
        keyring = KeyRing([AcceptedKey(key, "the key given") for key in keys])
    else:
        try:
            places = open_project().places
        except ProjectError as error:
            raise ProjectError(
                f"whose signature counts is not known: {error.message}",
                hint="name the key of who certified: --key ed25519:…, from whom you trust",
            ) from error
        keyring = load_machine_keyring(places)
    found = parse_certificate(text)
    previous = parse_certificate(before) if before is not None else None
    findings = verify_certificate(found, keyring=keyring, previous=previous)
    if as_json:
        emit_json({"predicate": found.predicate, "findings": [vars(finding) for finding in findings]})
    elif found.signers:
        click.echo(render_certificate(found, findings))
    bad = tuple(Reason("certificate", finding.text) for finding in findings if not finding.is_good)
    if bad:
        refuse(Refusal(bad), what="the certificate does not hold")


def _read_people(project: Project, dataset: str) -> list[bytes]:
    """Keyed hashes of the ids on standard input; the ids go no further."""
    from mlops.erasure.requests import hash_people

    return hash_people(project.places, dataset, read_ids())


def _request_json(row: RequestRow) -> dict[str, Any]:
    """Without the keyed hash: who has the key could look for a person with it."""
    return {name: value for name, value in vars(row).items() if name != "subject"}


def _render_end(held: Refusal | None, batch_id: str, requests: int) -> str:
    if held is not None:
        return held.reasons[0].text
    return f"{batch_id}: {requests} requests are answered; `mlops erasure certificate list`"
