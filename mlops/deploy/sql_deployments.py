"""SQL of approvals, desired states, deployments and barred digests.

Leaves to others: what follows from them (promotion.py, admission.py, reconcile_plan.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from mlops.ledger.connection import Transaction

metadata = sa.MetaData()
approvals = sa.Table(
    "approvals",
    metadata,
    sa.Column("approval_id", sa.Text, primary_key=True),
    sa.Column("product", sa.Text, nullable=False),
    sa.Column("environment", sa.Text, nullable=False),
    sa.Column("issued_us", sa.BigInteger, nullable=False),
    sa.Column("envelope", sa.Text, nullable=False),
    sa.Index("approvals_by_product", "product", "environment"),
)
desired_states = sa.Table(
    "desired_states",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("environment", sa.Text, nullable=False, index=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("cause", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("at_us", sa.BigInteger, nullable=False),
    sa.Column("step_id", sa.Text, nullable=True),
    sa.Column("commit_hash", sa.Text, nullable=True),
)
deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("deployment_id", sa.Text, primary_key=True),
    sa.Column("environment", sa.Text, nullable=False),
    sa.Column("product", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("image", sa.Text, nullable=False),
    sa.Column("candidate", sa.Text, nullable=False),
    sa.Column("share", sa.Integer, nullable=False),
    sa.Column("since_us", sa.BigInteger, nullable=False),
    sa.Column("until_us", sa.BigInteger, nullable=True),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Index("deployments_by_environment", "environment", "product"),
)
barred_digests = sa.Table(
    "barred_digests",
    metadata,
    sa.Column("environment", sa.Text, primary_key=True),
    sa.Column("image", sa.Text, primary_key=True),
    sa.Column("at_us", sa.BigInteger, nullable=False),
    sa.Column("cause", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
)

SERVING = "serving"
GOOD = "good"
FAILED = "failed"


@dataclass(frozen=True)
class DesiredRow:
    """One desired state that was decided; it counts once it is committed."""

    number: int
    environment: str
    digest: str
    """`sha256:…` of `content`."""
    content: str
    """Text of `deploy/desired/<environment>.yaml`."""
    cause: str
    """`promote`, `rollback`, `automatic-return`, `erasure`."""
    why: str
    at_us: int
    step_id: str | None
    """The signed step that admitted it."""
    commit_hash: str | None
    """The signed commit; None while it is being written."""


@dataclass(frozen=True)
class DeploymentRow:
    """One stretch of time in which a version had a share of an environment's traffic."""

    deployment_id: str
    environment: str
    product: str
    number: int
    image: str
    candidate: str
    share: int
    """Percent."""
    since_us: int
    until_us: int | None
    """None while it serves."""
    outcome: str
    """`serving`, `good` (was replaced by another while well), `failed`."""
    why: str


@dataclass(frozen=True)
class BarredRow:
    """An image that failed in an environment; approvals signed later lift the bar."""

    environment: str
    image: str
    at_us: int
    cause: str
    why: str


def insert_approval(
    transaction: Transaction, *, approval_id: str, product: str, environment: str, issued_us: int, envelope: str
) -> None:
    """Keep a signed approval."""
    transaction.connection.execute(
        approvals.insert().values(
            approval_id=approval_id, product=product, environment=environment, issued_us=issued_us, envelope=envelope
        )
    )
    transaction.append("approval.signed", approval_id, {"product": product, "environment": environment})


def load_approval_envelopes(connection: sa.Connection, *, product: str, environment: str) -> tuple[str, ...]:
    """Envelopes of all approvals for a product in an environment, oldest first; nothing about them is checked."""
    query = (
        sa.select(approvals.c.envelope)
        .where(approvals.c.product == product, approvals.c.environment == environment)
        .order_by(approvals.c.issued_us, approvals.c.approval_id)
    )
    return tuple(connection.scalars(query))


def insert_desired(
    transaction: Transaction,
    *,
    environment: str,
    digest: str,
    content: str,
    cause: str,
    why: str,
    step_id: str | None,
) -> DesiredRow:
    """Decide a desired state: from here on it will be committed, also after a crash."""
    last = transaction.connection.scalar(sa.select(sa.func.max(desired_states.c.number))) or 0
    row = DesiredRow(last + 1, environment, digest, content, cause, why, transaction.now_us, step_id, None)
    transaction.connection.execute(desired_states.insert().values(**row.__dict__))
    transaction.append(
        "desired.decided", environment, {"number": row.number, "digest": digest, "cause": cause, "why": why}
    )
    return row


def mark_committed(transaction: Transaction, *, number: int, commit_hash: str) -> None:
    """The desired state stands in git."""
    row = transaction.connection.execute(
        sa.select(desired_states.c.environment).where(desired_states.c.number == number)
    ).one()
    transaction.connection.execute(
        desired_states.update().where(desired_states.c.number == number).values(commit_hash=commit_hash)
    )
    transaction.append("desired.committed", row.environment, {"number": number, "commit": commit_hash})


def load_desired(connection: sa.Connection, environment: str, *, is_committed: bool | None = None) -> DesiredRow | None:
    """The newest desired state of an environment; with `is_committed` only among (un)committed ones."""
    query = (
        sa.select(desired_states)
        .where(desired_states.c.environment == environment)
        .order_by(desired_states.c.number.desc())
        .limit(1)
    )
    if is_committed is not None:
        column = desired_states.c.commit_hash
        query = query.where(column.is_not(None) if is_committed else column.is_(None))
    row = connection.execute(query).one_or_none()
    return DesiredRow(**row._mapping) if row else None


def load_deployments(
    connection: sa.Connection, *, environment: str | None = None, product: str | None = None, is_current: bool = False
) -> tuple[DeploymentRow, ...]:
    """Stretches of serving, newest first."""
    query = sa.select(deployments).order_by(deployments.c.since_us.desc(), deployments.c.deployment_id.desc())
    if environment is not None:
        query = query.where(deployments.c.environment == environment)
    if product is not None:
        query = query.where(deployments.c.product == product)
    if is_current:
        query = query.where(deployments.c.until_us.is_(None))
    return tuple(DeploymentRow(**row._mapping) for row in connection.execute(query))


def begin_deployment(transaction: Transaction, row: DeploymentRow) -> None:
    """A version has got a share of the traffic."""
    transaction.connection.execute(deployments.insert().values(**row.__dict__))
    transaction.append(
        "deployment.began",
        row.environment,
        {"product": row.product, "number": row.number, "image": row.image, "share": row.share},
    )


def end_deployment(transaction: Transaction, row: DeploymentRow, *, outcome: str, why: str) -> None:
    """A version no longer has that share."""
    transaction.connection.execute(
        deployments.update()
        .where(deployments.c.deployment_id == row.deployment_id)
        .values(until_us=transaction.now_us, outcome=outcome, why=why)
    )
    transaction.append(
        "deployment.ended",
        row.environment,
        {"product": row.product, "number": row.number, "image": row.image, "outcome": outcome, "why": why},
    )


def bar_digest(transaction: Transaction, row: BarredRow) -> bool:
    """Bar an image from an environment; False when it was barred already (the first reason stays)."""
    known = transaction.connection.execute(
        sa.select(barred_digests).where(
            barred_digests.c.environment == row.environment, barred_digests.c.image == row.image
        )
    ).one_or_none()
    if known is not None:
        return False
    transaction.connection.execute(barred_digests.insert().values(**row.__dict__))
    transaction.append("digest.barred", row.environment, {"image": row.image, "cause": row.cause, "why": row.why})
    return True


def lift_bar(transaction: Transaction, *, environment: str, image: str) -> None:
    """Later approvals lift a bar."""
    removed = transaction.connection.execute(
        barred_digests.delete().where(barred_digests.c.environment == environment, barred_digests.c.image == image)
    )
    if removed.rowcount:
        transaction.append("digest.unbarred", environment, {"image": image})


def load_barred(connection: sa.Connection, environment: str) -> dict[str, BarredRow]:
    """Barred images of an environment."""
    query = sa.select(barred_digests).where(barred_digests.c.environment == environment)
    return {row.image: BarredRow(**row._mapping) for row in connection.execute(query)}


def list_environments(connection: sa.Connection) -> tuple[str, ...]:
    """Environments in which anything was ever desired or served, sorted."""
    names = {*connection.scalars(sa.select(desired_states.c.environment).distinct())}
    names |= {*connection.scalars(sa.select(deployments.c.environment).distinct())}
    return tuple(sorted(names))
