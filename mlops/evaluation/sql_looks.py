"""How often a test set was looked at: each further candidate judged on the same rows fits them a little more.

The budget is counted by the digest of the rows; judging the same candidate again costs nothing. Leaves to others: how
many looks a policy allows (policy.py), and asking before a run (judging.py).
Source: the reusable holdout, Dwork et al., Science 349 (2015), in its simplest form: count, and stop.
"""

from __future__ import annotations

import sqlalchemy as sa

from mlops.errors import Reason, Refusal
from mlops.ledger.connection import Ledger

metadata = sa.MetaData()
gate_looks = sa.Table(
    "gate_looks",
    metadata,
    sa.Column("test_digest", sa.Text, primary_key=True),
    sa.Column("candidate", sa.Text, primary_key=True),
    sa.Column("product", sa.Text, nullable=False),
    sa.Column("looked_us", sa.BigInteger, nullable=False),
)


def spend_look(ledger: Ledger, *, test_digest: str, candidate: str, product: str, allowed: int) -> int | Refusal:
    """Count a look, all or nothing, before the gate runs.

    Returns:
        How many candidates have now been judged on these rows; a refusal when the budget is used up.
    """
    with ledger.write() as transaction:
        connection = transaction.connection
        seen = set(connection.scalars(sa.select(gate_looks.c.candidate).where(gate_looks.c.test_digest == test_digest)))
        if candidate in seen:
            return len(seen)
        if len(seen) >= allowed:
            text = (
                f"{len(seen)} candidates were judged on test rows {test_digest[7:19]}, the policy allows {allowed}: "
                "import fresh test rows, or raise `looks` with a reason"
            )
            return Refusal((Reason("looks-used-up", text),))
        connection.execute(
            gate_looks.insert().values(
                test_digest=test_digest, candidate=candidate, product=product, looked_us=transaction.now_us
            )
        )
        transaction.append("gate.looked", candidate, {"test": test_digest, "product": product, "looks": len(seen) + 1})
    return len(seen) + 1
