"""What served when, and which instances were lost: written to the ledger as it happens.

Leaves to others: deciding on it (going_back.py), showing it (status.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from mlops.deploy import sql_deployments
from mlops.deploy.desired_state import ServedVersion
from mlops.deploy.site import Site
from mlops.deploy.sql_deployments import FAILED, GOOD, SERVING, DeploymentRow
from mlops.ledger.sql_events import load_events

_LOST = "instance.lost"


def record_serving(site: Site, environment: str, product: str, versions: Sequence[ServedVersion]) -> tuple[str, ...]:
    """Note what has traffic now; returns a line per change, none when it is as noted before."""
    with site.ledger.read() as connection:
        current = sql_deployments.load_deployments(
            connection, environment=environment, product=product, is_current=True
        )
    wanted = {(version.image, version.share): version for version in versions}
    if {(row.image, row.share) for row in current} == set(wanted):
        return ()
    lines: list[str] = []
    with site.ledger.write() as transaction:
        barred = sql_deployments.load_barred(transaction.connection, environment)
        for row in current:
            if (row.image, row.share) in wanted:
                continue
            outcome, why = (FAILED, barred[row.image].why) if row.image in barred else (GOOD, "replaced")
            sql_deployments.end_deployment(transaction, row, outcome=outcome, why=why)
        known = {(row.image, row.share) for row in current}
        for key, version in wanted.items():
            if key in known:
                continue
            sql_deployments.begin_deployment(
                transaction,
                DeploymentRow(
                    deployment_id=site.ids.new("deployment"),
                    environment=environment,
                    product=product,
                    number=version.number,
                    image=version.image,
                    candidate=version.candidate,
                    share=version.share,
                    since_us=transaction.now_us,
                    until_us=None,
                    outcome=SERVING,
                    why="",
                ),
            )
            lines.append(f"version {version.number} serves {version.share} %")
    return tuple(lines)


def record_loss(site: Site, environment: str, image: str, *, why: str) -> None:
    """An instance of a version that should serve was lost."""
    with site.ledger.write() as transaction:
        transaction.append(_LOST, environment, {"image": image, "why": why})


def count_losses(site: Site, environment: str, image: str, *, since_us: int) -> int:
    """Instances of an image lost here since then, and since its bar was last lifted."""
    with site.ledger.read() as connection:
        count = 0
        for event in load_events(connection, subject=environment):
            if event.kind == "digest.unbarred" and event.body["image"] == image:
                count = 0
            elif event.kind == _LOST and event.body["image"] == image and event.at_us >= since_us:
                count += 1
    return count
