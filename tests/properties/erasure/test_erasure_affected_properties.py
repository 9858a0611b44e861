"""The affected set against a plain walk over every step, on random histories."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from mlops.clock import FakeClock
from mlops.erasure.affected import trace_versions
from mlops.ids import CountingIds
from mlops.ledger.connection import open_ledger, sqlite_url
from mlops.places import Places
from mlops.project.opening import Project
from mlops.provenance.digest import digest_bytes
from mlops.provenance.sql_steps import StepRecord, find_steps
from mlops.provenance.steps import StepBook, StepOutcome

EXAMPLES = 40 * int(os.environ.get("MLOPS_TEST_SCALE", "1"))
KINDS = {
    "dataset-import": "manifest", "sweep": "weights", "export": "candidate", "gate": "gate",
    "registration": "version", "image": "image", "promotion": "desired", "erasure-purge": "purge",
}  # fmt: skip
NAMES = ("manifest", "weights", "candidate", "champion", "left", "other")

inputs = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 11), max_size=3)
histories = st.lists(st.tuples(st.sampled_from(sorted(KINDS)), inputs, st.integers(0, 11)), min_size=1, max_size=14)
"""Of each step its kind, what it uses under which name, and what it makes; later steps may make the same again."""


def digest_of(number: int) -> str:
    return digest_bytes(f"thing {number}".encode())


def holds(digest: str, steps: list[StepRecord], manifests: set[str], seen: frozenset[str] = frozenset()) -> bool:
    """Asked of one thing, backwards: is it one of the versions, or did anything go into it that holds them?"""
    if digest in manifests:
        return True
    if digest in seen:
        return False
    for step in steps:
        if step.kind == "erasure-purge" or digest not in step.outputs.values() or "manifest" in step.outputs:
            continue
        used = [it for name, it in step.inputs.items() if name not in ("champion", "left")]
        if any(holds(it, steps, manifests, seen | {digest}) for it in used):
            return True
    return False


@settings(max_examples=EXAMPLES, deadline=None)
@given(histories, st.sets(st.integers(0, 11), min_size=1, max_size=2))
def test_the_affected_set_is_what_a_walk_back_from_each_thing_finds(
    history: list[tuple[str, dict[str, int], int]], chosen: set[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        places, clock = Places(Path(folder)), FakeClock()
        project = Project(places, clock, CountingIds(), sqlite_url(places.ledger_file))
        places.state.mkdir()
        ledger = open_ledger(project.ledger_url, clock)
        book = StepBook(ledger, clock=clock, ids=CountingIds(), signer=None)
        for number, (kind, uses, made) in enumerate(history):
            facts = {"number": number}
            outcome = StepOutcome(outputs={KINDS[kind]: digest_of(made)}, facts=facts)
            used = {name: digest_of(it) for name, it in uses.items()}
            if kind == "registration":
                used.setdefault("candidate", digest_of(99))
            book.record(kind, product="p", inputs=used, outcome=outcome, started_us=clock.now_us())
        manifests = {digest_of(number) for number in chosen}
        affected = trace_versions(project, "p", tuple(manifests))
        with ledger.read() as connection:
            steps = list(find_steps(connection))
        expected: dict[str, set[str]] = {"candidate": set(), "image": set(), "gate": set(), "version": set()}
        for step in steps:
            used = [it for name, it in step.inputs.items() if name not in ("champion", "left")]
            for name, digest in step.outputs.items():
                if name in expected and any(holds(it, steps, manifests) for it in used):
                    expected[name].add(digest)
        assert set(affected.candidates) == expected["candidate"]
        assert set(affected.images) == expected["image"]
        assert set(affected.evidence) == expected["gate"]
        assert {model.digest for model in affected.models} == expected["version"]
        ledger.close()
        project.ledger.close()
