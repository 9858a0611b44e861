"""Whether a waiver or statement before the gate counts: signed by a person who has the owner's role.

Owners in a gate policy are roles of `deploy/roles.yaml`: who answers for a threshold may waive it, who owns a clause
may state that it is kept.
Leaves to others: what a valid signature changes (mlops/evaluation/signed_answers.py).
"""

from __future__ import annotations

from dataclasses import replace

from mlops.deploy.roles import RolesSpec, load_roles
from mlops.errors import ProvenanceError, Reason
from mlops.evaluation.signed_answers import Signed, Verify
from mlops.evaluation.signed_files import parse_answer
from mlops.provenance.dsse import parse_envelope
from mlops.provenance.steps import Workbench


def open_verifier(bench: Workbench, product: str) -> Verify:
    """The verifying function of a project, by its roles of now."""
    return gate_verifier(load_roles(bench.places), product=product, now_us=bench.clock.now_us())


def gate_verifier(roles: RolesSpec, *, product: str, now_us: int) -> Verify:
    """The function that the gate asks.

    Args:
        roles: Whose keys count, and who has which role.
        product: Of which product.
        now_us: Decides whether a key still counts.
    """

    def holds(signed: Signed, owner: str) -> bool:
        try:
            signers = parse_envelope(signed.envelope).valid_signers()
            said = parse_answer(signed.envelope, product=product)
        except ProvenanceError:
            return False
        found = roles.person_of_key(signers[0]) if len(signers) == 1 else None
        if found is None or said != replace(signed, envelope=said.envelope):
            return False
        person, key = found
        return person == signed.by and key.is_valid_at(now_us) and owner in roles.people[person].roles

    return holds


def object_to_signing(
    answer: Signed, *, owner: str, public: str, verdict: str | None, roles: RolesSpec, now_us: int
) -> tuple[Reason, ...]:
    """Why the gate would not count what somebody is about to sign; empty when it would.

    Args:
        answer: What is to be signed.
        owner: Role that answers for the check or clause.
        public: The signing key's public half.
        verdict: What the newest result says of the check; None: a clause, or not judged yet.
        roles: Whose keys count, and who has which role.
        now_us: Decides whether the key counts and the answer still runs.
    """
    reasons = []
    if not answer.reason.strip():
        reasons.append(Reason("no-reason", "a reason is needed: it stands in every report"))
    if answer.until_us <= now_us:
        reasons.append(Reason("over", "the end lies in the past"))
    if verdict == "FAIL":
        reasons.append(Reason("shown-bad", f"{answer.subject} is FAIL: what is shown to be bad cannot be waived"))
    if verdict == "PASS":
        reasons.append(Reason("passes", f"{answer.subject} is PASS: there is nothing to waive"))
    found = roles.person_of_key(public)
    if found is None or found[0] != answer.by or not found[1].is_valid_at(now_us):
        reasons.append(Reason("unknown-key", f"deploy/roles.yaml does not give this key to {answer.by}, or no longer"))
    elif owner not in roles.people[answer.by].roles:
        reasons.append(
            Reason("no-role", f"{answer.by} does not have the role {owner}, which answers for {answer.subject}")
        )
    return tuple(reasons)
