"""The lineage queries against the plain closure of a random graph."""

from __future__ import annotations

import os
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from mlops.clock import FakeClock
from mlops.ids import CountingIds
from mlops.ledger.connection import open_ledger
from mlops.provenance.digest import digest_bytes
from mlops.provenance.lineage import walk_back, walk_forward
from mlops.provenance.steps import StepBook, StepOutcome

EXAMPLES = 40 * int(os.environ.get("MLOPS_TEST_SCALE", "1"))

graphs = st.integers(min_value=1, max_value=9).flatmap(
    lambda size: st.tuples(*(st.sets(st.integers(min_value=-2, max_value=step - 1)) for step in range(size)))
)
"""For each step the numbers of those it uses; negative ones came from outside."""


def digest_of(number: int) -> str:
    return digest_bytes(f"output {number}".encode())


def closure(graph: tuple[set[int], ...]) -> set[tuple[int, int]]:
    """(step, used step), over any number of steps: Warshall."""
    reach = {(step, used) for step, uses in enumerate(graph) for used in uses if used >= 0}
    for middle, start, end in product(range(len(graph)), repeat=3):
        if (start, middle) in reach and (middle, end) in reach:
            reach.add((start, end))
    return reach


@settings(max_examples=EXAMPLES, deadline=None)
@given(graphs)
def test_walks_find_exactly_what_is_reachable(graph: tuple[set[int], ...]) -> None:
    clock = FakeClock()
    ledger = open_ledger("sqlite://", clock)
    book = StepBook(ledger, clock=clock, ids=CountingIds(), signer=None)
    names: dict[str, int] = {}
    for step, uses in enumerate(graph):
        clock.advance(1)
        inputs = {f"input {used}": digest_of(used) for used in uses}
        outcome = StepOutcome(outputs={"output": digest_of(step)}, facts={})
        record = book.record("work", product="p", inputs=inputs, outcome=outcome, started_us=clock.now_us())
        names[record.step_id] = step
    reach = closure(graph)
    with ledger.read() as connection:
        for step in range(len(graph)):
            back = {names[found.step_id] for found in walk_back(connection, [digest_of(step)]).steps}
            assert back == {step} | {used for start, used in reach if start == step}
            forward = {names[found.step_id] for found in walk_forward(connection, [digest_of(step)])}
            assert forward == {user for user, used in reach if used == step}
    ledger.close()
