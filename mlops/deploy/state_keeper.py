"""Keeping the desired state: decided in the ledger first, then one signed commit; a crash in between is made good.

The file counts only as the machine wrote it: its text is the newest decided one, a signed step names its digest, and
its last commit is signed by a machine whose key counts.
Leaves to others: which state is right (promotion.py, rollback.py) and making it so (reconciler.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlops.deploy import sql_deployments
from mlops.deploy.desired_state import DesiredState, desired_file, desired_path, parse_desired
from mlops.deploy.signatures import find_signature_flaw
from mlops.deploy.site import Site
from mlops.deploy.sql_deployments import DesiredRow
from mlops.errors import MlopsError, Reason, Refusal
from mlops.provenance.digest import digest_bytes
from mlops.provenance.git_commits import commit_files, read_commit
from mlops.provenance.git_repository import open_repository
from mlops.provenance.sql_steps import find_steps_of_digest
from mlops.provenance.steps import StepOutcome

Hook = Callable[[str], None]
"""Told the name of each step just before it; tests end the process there."""


def ignore_step(_name: str) -> None:
    """The hook of everyday runs."""


def write_desired(
    site: Site,
    state: DesiredState,
    *,
    step_kind: str,
    product: str,
    inputs: Mapping[str, str],
    facts: Mapping[str, Any],
    cause: str,
    why: str,
    hook: Hook = ignore_step,
) -> DesiredRow | Refusal:
    """Decide, sign and commit a new desired state; call it inside `Site.deciding`.

    Args:
        site: Where.
        state: The new state.
        step_kind: `promotion` or `rollback`.
        product: What it is about.
        inputs: Digests the decision rests on; the step's inputs.
        facts: Environment, number, approvals, checklist: signed with the step.
        cause: `promote`, `rollback`, `automatic-return`, `erasure`.
        why: For people; becomes the commit's body.
        hook: See `Hook`.

    Returns:
        The committed row, or a refusal when the file was changed by hand.
    """
    refusal = find_hand_edit(site, state.environment)
    if refusal is not None:
        return refusal
    hook("before-step")
    started_us = site.clock.now_us()
    outcome = StepOutcome(outputs={"desired": state.digest}, facts={"environment": state.environment, **facts})
    step = site.step_book.record(
        step_kind, product=product, inputs=dict(inputs), outcome=outcome, started_us=started_us
    )
    hook("before-decision")
    with site.ledger.write() as transaction:
        sql_deployments.insert_desired(
            transaction,
            environment=state.environment,
            digest=state.digest,
            content=state.render_yaml(),
            cause=cause,
            why=why,
            step_id=step.step_id,
        )
    hook("before-commit")
    finished = finish_pending(site, state.environment, hook=hook)
    if isinstance(finished, Refusal):
        return finished
    assert finished is not None
    return finished


def finish_pending(site: Site, environment: str, *, hook: Hook = ignore_step) -> DesiredRow | Refusal | None:
    """Commit the newest decided state if that is still to be done; returns the newest committed row."""
    with site.ledger.read() as connection:
        row = sql_deployments.load_desired(connection, environment)
    if row is None or row.commit_hash is not None:
        return row
    path = desired_path(environment)
    message = f"{row.cause.capitalize().replace('-', ' ')} in {environment}\n\n{row.why}\n\nDesired-State: {row.digest}"
    commit = commit_files(
        open_repository(site.places.root),
        {path: row.content.encode()},
        message=message,
        key=site.machine_key(),
        clock=site.clock,
    )
    if isinstance(commit, Refusal):
        return commit
    hook("before-mark")
    with site.ledger.write() as transaction:
        sql_deployments.mark_committed(transaction, number=row.number, commit_hash=commit)
    with site.ledger.read() as connection:
        return sql_deployments.load_desired(connection, environment)


def load_desired_state(site: Site, environment: str) -> DesiredState:
    """The newest decided state, whatever the work tree says; empty when nothing was ever promoted."""
    with site.ledger.read() as connection:
        row = sql_deployments.load_desired(connection, environment)
    if row is None:
        return DesiredState(environment)
    return parse_desired(row.content, source=desired_path(environment))


def find_hand_edit(site: Site, environment: str) -> Refusal | None:
    """Whether the file in the work tree is something the machine did not write."""
    path = desired_file(site.places, environment)
    with site.ledger.read() as connection:
        newest = sql_deployments.load_desired(connection, environment)
        committed = sql_deployments.load_desired(connection, environment, is_committed=True)
    known = {row.digest for row in (newest, committed) if row is not None}
    if not path.exists():
        if committed is None:
            return None
        return _refuse("desired-state-missing", environment, "was removed by hand")
    if digest_bytes(path.read_bytes()) not in known:
        return _refuse("desired-state-edited", environment, "is not what the machine wrote last")
    return None


def verify_desired(site: Site, environment: str) -> DesiredState | Refusal:
    """The state to serve: text, ledger, signed step and signed commit all agree, or a refusal names what does not.

    Also finishes a commit that a crash left out.
    """
    edited = find_hand_edit(site, environment)
    if edited is not None:
        return edited
    row = finish_pending(site, environment)
    if row is None:
        return DesiredState(environment)
    if isinstance(row, Refusal):
        return row
    text = desired_file(site.places, environment).read_bytes()
    if digest_bytes(text) != row.digest:
        return _refuse("desired-state-edited", environment, "is an older state than the one decided last")
    keyring = site.load_keyring()
    with site.ledger.read() as connection:
        steps = [
            step
            for step in find_steps_of_digest(connection, row.digest, direction="out")
            if step.step_id == row.step_id
        ]
    flaw = find_signature_flaw(steps[0], keyring=keyring) if steps else "no signed step names it"
    if flaw is not None:
        return _refuse("desired-state-unsigned", environment, f"rests on no valid signature: {flaw}")
    return _verify_commit(site, environment, text.decode()) or parse_desired(
        text.decode(), source=desired_path(environment)
    )


def _verify_commit(site: Site, environment: str, text: str) -> Refusal | None:
    repository = open_repository(site.places.root)
    path = desired_path(environment)
    try:
        commit = repository.last_commit_of(path)
        if commit is None or repository.read_file(path, revision=commit) != text.encode():
            return _refuse("desired-state-uncommitted", environment, "is not what the last commit holds")
        signed = read_commit(repository, commit)
    except MlopsError as error:
        return _refuse("desired-state-uncommitted", environment, error.message)
    objection = (
        Reason("unsigned", "nobody signed it")
        if signed.signer is None
        else site.load_keyring().find_objection(signed.signer, signed_us=site.clock.now_us())
    )
    if objection is not None:
        return _refuse("desired-state-unsigned", environment, f"commit {commit[:12]} does not count: {objection.text}")
    return None


def _refuse(code: str, environment: str, text: str) -> Refusal:
    path = desired_path(environment)
    hint = f"see `git log -p {path}`; put the machine's text back with `git checkout`, then use `mlops promote`"
    return Refusal((Reason(code, f"{path} {text}; {hint}"),))
