"""Finished steps as in-toto Statements v1: outputs are the subject, inputs are the materials, each by sha256.

Each kind of step has the predicate type that the field uses for such an act; whatever the type, the field
`mlops_step` repeats the whole record, so that the ledger's row and the signed statement can be compared.
Leaves to others: signing (dsse.py) and checking the digests (verify.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from mlops.clock import render_time
from mlops.errors import ProvenanceError
from mlops.provenance.digest import canonical_json, hex_of
from mlops.provenance.sql_steps import StepRecord

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
SLSA_PROVENANCE = "https://slsa.dev/provenance/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
OWN_PREFIX = "urn:mlops:attestation:"

_RESULTS = {"PASS": "PASSED", "UNDECIDED": "WARNED", None: "PASSED"}
"""Our verdicts in the words of test-result v0.1; a step without a verdict is recorded only when it passed."""


def render_statement(record: StepRecord) -> bytes:
    """Canonical JSON of the step's statement.

    Raises:
        ValueError: An input or output is not a sha256 digest, or there is no output to speak of.
    """
    if not record.outputs:
        raise ValueError(f"step {record.kind} has no outputs: a statement needs a subject")
    predicate_type, render_predicate = _KINDS.get(record.kind, (_own_type(record.kind), _render_own))
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": _descriptors(record.outputs),
        "predicateType": predicate_type,
        "predicate": {**render_predicate(record), "mlops_step": _step_fields(record)},
    }
    return canonical_json(statement)


def parse_statement(payload: bytes, *, envelope: str | None) -> StepRecord:
    """The record that a statement speaks of.

    Raises:
        ProvenanceError: Not a statement as `render_statement` writes it.
    """
    try:
        value = json.loads(payload)
        step = value["predicate"]["mlops_step"]
        record = StepRecord(
            step_id=str(step["step_id"]),
            kind=str(step["kind"]),
            product=str(step["product"]),
            memo_key=str(step["memo_key"]),
            started_us=int(step["started_us"]),
            finished_us=int(step["finished_us"]),
            inputs=dict(step["inputs"]),
            outputs={str(entry["name"]): f"sha256:{entry['digest']['sha256']}" for entry in value["subject"]},
            facts=dict(step["facts"]),
            envelope=envelope,
        )
        is_same = value["_type"] == STATEMENT_TYPE and canonical_json(value) == payload
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ProvenanceError(f"not the statement of a step: {error!r}") from error
    if not is_same:
        raise ProvenanceError("not a canonical in-toto Statement v1")
    return record


def _descriptors(named: dict[str, str]) -> list[dict[str, Any]]:
    """in-toto resource descriptors."""
    return [{"name": name, "digest": {"sha256": hex_of(digest)}} for name, digest in sorted(named.items())]


def _step_fields(record: StepRecord) -> dict[str, Any]:
    return {
        "step_id": record.step_id,
        "kind": record.kind,
        "product": record.product,
        "memo_key": record.memo_key,
        "started_us": record.started_us,
        "finished_us": record.finished_us,
        "inputs": record.inputs,
        "facts": record.facts,
    }


def _own_type(kind: str) -> str:
    return f"{OWN_PREFIX}{kind}:v1"


def _render_build(record: StepRecord) -> dict[str, Any]:
    """SLSA provenance v1: how an artefact was built and from what."""
    return {
        "buildDefinition": {
            "buildType": _own_type(record.kind),
            "externalParameters": {"product": record.product},
            "resolvedDependencies": _descriptors(record.inputs),
        },
        "runDetails": {
            "builder": {"id": f"{OWN_PREFIX}machine"},
            "metadata": {
                "invocationId": record.step_id,
                "startedOn": render_time(record.started_us),
                "finishedOn": render_time(record.finished_us),
            },
        },
    }


def _render_test(record: StepRecord) -> dict[str, Any]:
    """in-toto test-result v0.1: what was checked under which configuration, and how it went."""
    return {"result": _RESULTS.get(record.facts.get("verdict"), "FAILED"), "configuration": _descriptors(record.inputs)}


def _render_own(record: StepRecord) -> dict[str, Any]:
    return {
        "product": record.product,
        "materials": _descriptors(record.inputs),
        "finishedOn": render_time(record.finished_us),
    }


_KINDS: dict[str, tuple[str, Callable[[StepRecord], dict[str, Any]]]] = {
    "dataset-import": (_own_type("dataset"), _render_own),
    "source-check": (TEST_RESULT, _render_test),
    "trainer-check": (TEST_RESULT, _render_test),
    "sweep": (SLSA_PROVENANCE, _render_build),
    "export": (SLSA_PROVENANCE, _render_build),
    "gate": (TEST_RESULT, _render_test),
    "registration": (_own_type("registration"), _render_own),
    "image": (SLSA_PROVENANCE, _render_build),
    "probe": (TEST_RESULT, _render_test),
}
