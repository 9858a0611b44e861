"""Promoting and approving: gather, decide, and when the answer is yes write it down.

Leaves to others: the facts (promotion_facts.py), the decision (promotion.py), the commit (state_keeper.py), and making
machines serve it (reconciler.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mlops.deploy import sql_deployments
from mlops.deploy.admission import PROMOTION_STEP, admit, find_image_damage
from mlops.deploy.approval import Approval, Purpose, sign_approval
from mlops.deploy.consumer import load_consumers
from mlops.deploy.desired_state import DesiredState, PinnedConsumer, ReleaseSet, ServedVersion
from mlops.deploy.environment import EnvironmentSpec
from mlops.deploy.erasure_fence import find_fenced_images
from mlops.deploy.promotion import Cause, Checklist, PromotionFacts, Release, examine_promotion
from mlops.deploy.promotion_facts import find_release, gather_facts
from mlops.deploy.site import Site
from mlops.deploy.sql_deployments import FAILED, DeploymentRow, DesiredRow
from mlops.deploy.state_keeper import Hook, ignore_step, write_desired
from mlops.errors import ProjectError, Reason, Refusal
from mlops.provenance.ed25519 import SigningKey


@dataclass(frozen=True)
class PromotionResult:
    """A promotion that was examined, and perhaps carried out."""

    release: Release
    checklist: Checklist
    release_set: ReleaseSet
    """What would serve, or will."""
    written: DesiredRow | None
    """The committed state; None in a dry run, and when it is desired already."""


def approve(
    site: Site,
    rules: EnvironmentSpec,
    reference: str,
    *,
    key: SigningKey,
    reason: str,
    purpose: Purpose = "promotion",
) -> Approval:
    """Sign and keep an approval; whether it counts is decided when something is promoted.

    Raises:
        ProjectError: No reason is given.
        ProvenanceError: There is no such version.
    """
    if not reason.strip():
        raise ProjectError("an approval needs a reason", hint="--reason 'gate report read, accuracy better'")
    with site.ledger.read() as connection:
        release = find_release(connection, reference)
    approval = Approval(
        approval_id=site.ids.new("approval"),
        purpose=purpose,
        product=release.product,
        environment=rules.name,
        number=release.number,
        image=release.image,
        gate=release.gate,
        issued_us=site.clock.now_us(),
        reason=reason.strip(),
    )
    with site.ledger.write() as transaction:
        sql_deployments.insert_approval(
            transaction,
            approval_id=approval.approval_id,
            product=approval.product,
            environment=approval.environment,
            issued_us=approval.issued_us,
            envelope=sign_approval(approval, key=key),
        )
    return approval


def promote(
    site: Site,
    rules: EnvironmentSpec,
    reference: str,
    *,
    share: int = 100,
    cause: Cause = "promote",
    is_dry_run: bool = False,
    fences: tuple[str, ...] = (),
    tolerated: frozenset[tuple[str, bytes]] = frozenset(),
    erased: Mapping[str, str] | None = None,
    hook: Hook = ignore_step,
) -> PromotionResult | Refusal:
    """Move an environment to a version, on evidence.

    Args:
        site: Where.
        rules: The environment's.
        reference: `PRODUCT@NUMBER` or `PRODUCT@ALIAS`.
        share: Percent of the traffic; the rest stays with what serves now.
        cause: `erasure` lets standing approvals count where the environment allows it.
        is_dry_run: Examine only; then the result's checklist may hold rules that are not kept.
        fences: What forbids it whatever people say (from upper rooms), besides withdrawals of people behind it.
        tolerated: People (dataset, keyed hash) whose withdrawal does not forbid it: what it replaces holds them too,
            and their own batch comes next.
        erased: Digest to the erasure certificate under which it was purged.
        hook: See `Hook`.

    Raises:
        ProvenanceError: There is no such version.
        ProjectError: Project files have problems.
    """
    product = reference.partition("@")[0]
    if product not in rules.traffic.ports:
        return _refuse("no-port", f"{rules.name} has no port for {product} in traffic.ports")
    with site.deciding(rules.name):
        with site.ledger.read() as connection:
            release = find_release(connection, reference)
        facts = gather_facts(site, rules, release, fences=fences, tolerated=tolerated, erased=erased)
        checklist = examine_promotion(facts, rules, now_us=site.clock.now_us(), cause=cause)
        planned = plan_release_set(site, rules, facts, share=share)
        if isinstance(planned, Refusal):
            return planned
        if is_dry_run:
            return PromotionResult(release, checklist, planned, None)
        if checklist.refusal is not None:
            return checklist.refusal
        assert facts.desired is not None
        if facts.desired.find_product(release.product) == planned and facts.barred is None:
            return PromotionResult(release, checklist, planned, None)
        return _carry_out(site, rules, facts, checklist, planned, cause=cause, hook=hook)


def plan_release_set(site: Site, rules: EnvironmentSpec, facts: PromotionFacts, *, share: int) -> ReleaseSet | Refusal:
    """What would serve: the version with its share, the consumers it was examined with, and the way back."""
    release, desired = facts.release, facts.desired
    current = desired.find_product(release.product) if desired is not None else None
    version = ServedVersion(release.number, release.image, release.candidate, share)
    consumers = tuple(
        PinnedConsumer(entry.service, entry.release, entry.contract_digest)
        for entry in load_consumers(site.places, product=release.product, environment=rules.name)
    )
    with site.ledger.read() as connection:
        rows = sql_deployments.load_deployments(connection, environment=rules.name, product=release.product)
        barred = sql_deployments.load_barred(connection, rules.name)
        noted = () if current is None else _list_known(current)
        fenced = find_fenced_images(connection, site.places, (version.image for version in noted))
    good = _choose_known_good(current, rows, frozenset((*barred, *fenced)), but=release.image)
    if share == 100:
        return ReleaseSet(release.product, (version,), consumers, good)
    if good is None or current is None:
        return _refuse("nothing-beside", f"{share} % needs a good version beside it; promote with all traffic first")
    return ReleaseSet(release.product, (version, replace(good, share=100 - share)), consumers, good)


def _choose_known_good(
    current: ReleaseSet | None, rows: tuple[DeploymentRow, ...], barred: frozenset[str], *, but: str
) -> ServedVersion | None:
    """The version with most traffic now, if it has served well; else the one noted before."""
    if current is None:
        return None
    well = {row.image for row in rows if row.outcome != FAILED}
    for version in _list_known(current):
        if version.image in well and version.image not in barred and version.image != but:
            return replace(version, share=100)
    return None


def _list_known(current: ReleaseSet) -> tuple[ServedVersion, ...]:
    noted = (current.last_known_good,) if current.last_known_good is not None else ()
    return (*sorted(current.versions, key=lambda version: -version.share), *noted)


def _carry_out(
    site: Site,
    rules: EnvironmentSpec,
    facts: PromotionFacts,
    checklist: Checklist,
    planned: ReleaseSet,
    *,
    cause: Cause,
    hook: Hook,
) -> PromotionResult | Refusal:
    release = facts.release
    if facts.barred is not None:
        with site.ledger.write() as transaction:
            sql_deployments.lift_bar(transaction, environment=rules.name, image=release.image)
    damage = find_image_damage(site.places, release.image)  # the last look before it is admitted
    if damage is not None:
        return _refuse("image-changed", damage)
    who = f", approved by {', '.join(checklist.approvers)}" if checklist.approvers else ""
    written = write_desired(
        site,
        (facts.desired or DesiredState(rules.name)).with_product(planned),
        step_kind=PROMOTION_STEP,
        product=release.product,
        inputs={"image": release.image, "version": release.version, "gate": release.gate},
        facts={
            "number": release.number,
            "share": planned.versions[0].share,
            "cause": cause,
            "approvers": list(checklist.approvers),
            "approvals": list(checklist.approval_ids),
            "release_set": planned.digest,
            "checklist": [[item.code, item.text] for item in checklist.items],
        },
        cause=cause,
        why=f"{release.product}@{release.number} gets {planned.versions[0].share} % of the traffic{who}",
        hook=hook,
    )
    if isinstance(written, Refusal):
        return written
    with site.ledger.read() as connection:
        admitted = admit(
            connection,
            release.image,
            environment=rules.name,
            places=site.places,
            keyring=site.load_keyring(),
            are_bytes_checked=False,
        )
    return admitted if isinstance(admitted, Refusal) else PromotionResult(release, checklist, planned, written)


def _refuse(code: str, text: str) -> Refusal:
    return Refusal((Reason(code, text),))
