"""Verifying everything behind a reference, and all that was made from a version until it could be served.

Leaves to others: the checks (mlops/provenance/verify.py), keys and loaders (mlops/deploy/chain_rules.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from mlops.deploy.admission import PROMOTION_STEP
from mlops.deploy.chain_rules import RELEASE_KINDS, load_chain_rules, load_machine_keyring
from mlops.deploy.erased import load_erased
from mlops.overview.trace import find_served_images
from mlops.project.opening import Project
from mlops.provenance.lineage import find_starts, walk_forward
from mlops.provenance.reference import Reference
from mlops.provenance.sql_steps import StepRecord
from mlops.provenance.verify import ChainReport, verify_chain


def verify_reference(project: Project, reference: Reference, *, erased: Mapping[str, str] | None = None) -> ChainReport:
    """Check the chain of a REF; of a version also its image and probe, of an environment also its promotion.

    Args:
        project: An open project.
        reference: What to verify.
        erased: Digest to the certificate under which its bytes were purged; by default as the ledger's signed purges
            say.

    Raises:
        ProvenanceError: Nothing is known of the reference.
        ProjectError: `deploy/roles.yaml` has problems.
    """
    is_release = reference.kind in ("version", "environment")
    with project.ledger.read() as connection:
        starts = find_starts(
            connection, reference, find_served=lambda environment: find_served_images(project, environment)
        )
        if is_release:
            made = [step for step in walk_forward(connection, starts) if _belongs(step, reference)]
            starts = (*starts, *(digest for step in made for digest in step.outputs.values()))
        if erased is None:
            keyring = load_machine_keyring(project.places)
            erased = {it.digest: it.under for it in load_erased(connection, keyring=keyring).values()}
        kinds = RELEASE_KINDS if is_release else frozenset()
        rules = load_chain_rules(project.places, required_kinds=kinds, erased=erased)
        return verify_chain(connection, starts, rules=rules)


def _belongs(step: StepRecord, reference: Reference) -> bool:
    """Whether a step that used what a REF names is part of bringing it to serve."""
    is_promotion = step.kind == PROMOTION_STEP and reference.kind == "environment"
    return step.kind in ("image", "probe") or (is_promotion and step.facts.get("environment") == reference.name)


def render_chain_report(report: ChainReport, *, is_long: bool) -> str:
    """Broken links first; then what was checked, link by link or as counts."""
    lines = [f"BROKEN  {link.step_kind} {link.check} {link.name}: {link.text}" for link in report.broken]
    others = [link for link in report.links if link.status != "broken"]
    if is_long:
        lines += [f"{link.status:8} {link.step_kind} {link.check} {link.name} {link.text}" for link in others]
    counts = {
        status: sum(link.status == status for link in report.links) for status in ("verified", "recorded", "erased")
    }
    steps = len({link.step_id for link in report.links if link.step_id})
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    many = len(report.broken)
    verdict = (
        "the chain holds" if report.is_verified else f"the chain is broken in {many} place{'s' if many > 1 else ''}"
    )
    return "\n".join([*lines, f"{verdict}: {steps} steps, {told or 'nothing checked'}"])
