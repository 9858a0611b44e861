"""What was purged for withdrawn people's sake, as signed steps in the ledger say it; nobody can claim it by a row.

The step is recorded before the first byte goes: from then on such an image is not admitted anywhere, and absent bytes
verify as *erased*. Leaves to others: what is purged (mlops/erasure), verifying chains (mlops/provenance/verify.py).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from mlops.clock import render_time
from mlops.deploy.signatures import find_signature_flaw
from mlops.errors import Reason
from mlops.provenance.digest import digest_json
from mlops.provenance.keyring import KeyRing
from mlops.provenance.sql_steps import find_steps, find_steps_of_digest
from mlops.provenance.steps import StepBook, StepOutcome

PURGE_STEP = "erasure-purge"
CERTIFICATE_STEP = "erasure-certificate"


@dataclass(frozen=True)
class ErasedDigest:
    """One digest whose bytes were purged."""

    digest: str
    step_id: str
    """The certificate's step where there is one, else the purge's."""
    at_us: int
    certificate: int | None = None
    """Its number; None while the batch is not certified yet."""

    @property
    def under(self) -> str:
        """`certificate 3 (step-…)`, for reports of a chain."""
        name = "purge" if self.certificate is None else f"certificate {self.certificate}"
        return f"{name} ({self.step_id})"

    @property
    def reason(self) -> Reason:
        """Why it may not serve."""
        when = render_time(self.at_us)
        text = f"{self.digest[:19]} was purged under {self.under} at {when}: it learned from a person who withdrew"
        return Reason("erased", text)


def record_purge(
    book: StepBook, *, dataset: str, manifests: Collection[str], erased: Collection[str], started_us: int
) -> str:
    """Sign what is about to be purged; once per set of digests. Returns the step's id.

    Args:
        book: Of the project.
        dataset: Whose rows it is about.
        manifests: Dataset versions that held the people.
        erased: Digests of versions, candidates, evidence and images.
        started_us: When the purge began.
    """
    listed = sorted(set(erased))
    inputs = {f"manifest-{number}": digest for number, digest in enumerate(sorted(set(manifests)))}
    outputs = {"purge": digest_json({"dataset": dataset, "erased": listed})}
    known = book.find(PURGE_STEP, product=dataset, inputs=inputs, is_present=lambda record: record.outputs == outputs)
    if known is not None:
        return known.step_id
    facts = {"summary": f"{len(listed)} digests purged", "dataset": dataset, "erased": listed}
    outcome = StepOutcome(outputs=outputs, facts=facts)
    return book.record(PURGE_STEP, product=dataset, inputs=inputs, outcome=outcome, started_us=started_us).step_id


def record_certificate(
    book: StepBook, connection: sa.Connection, *, dataset: str, number: int, certificate: str, started_us: int
) -> None:
    """Sign a step from the dataset's purges that no certificate names yet to this one; once per certificate.

    Args:
        book: Of the project.
        connection: To its ledger.
        dataset: Whose batch it was.
        number: Of the certificate.
        certificate: `sha256:…` of its envelope.
        started_us: When the batch began.
    """
    purges: dict[str, str] = {}
    for step in find_steps(connection, kind=PURGE_STEP, product=dataset, newest_first=False):
        users = find_steps_of_digest(connection, step.outputs["purge"], direction="in")
        if not any(user.kind == CERTIFICATE_STEP for user in users):
            purges[f"purge-{len(purges)}"] = step.outputs["purge"]
    facts = {"summary": f"certificate {number} over {len(purges)} purges", "dataset": dataset, "number": number}
    outcome = StepOutcome(outputs={"certificate": certificate}, facts=facts)
    book.record(CERTIFICATE_STEP, product=dataset, inputs=purges, outcome=outcome, started_us=started_us)


def load_erased(connection: sa.Connection, *, keyring: KeyRing) -> dict[str, ErasedDigest]:
    """Every digest that a signed purge names; the first purge of each."""
    found: dict[str, ErasedDigest] = {}
    for step in find_steps(connection, kind=PURGE_STEP, newest_first=False):
        if find_signature_flaw(step, keyring=keyring) is not None:
            continue
        users = find_steps_of_digest(connection, step.outputs["purge"], direction="in")
        signed = [it for it in users if it.kind == CERTIFICATE_STEP and not find_signature_flaw(it, keyring=keyring)]
        under, number = (signed[-1].step_id, int(signed[-1].facts["number"])) if signed else (step.step_id, None)
        for digest in step.facts["erased"]:
            found.setdefault(digest, ErasedDigest(digest, under, step.finished_us, number))
    return found
