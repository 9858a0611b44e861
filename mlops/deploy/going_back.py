"""Where to go when a version is not good, by itself or by command: pure decisions on a release set.

Leaves to others: noticing (reconciler.py), moving traffic (traffic_switch.py), and writing the state (state_keeper.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mlops.deploy.desired_state import ReleaseSet, ServedVersion
from mlops.deploy.environment import EnvironmentSpec
from mlops.deploy.reconcile_plan import Failure
from mlops.deploy.sql_deployments import FAILED, BarredRow, DeploymentRow
from mlops.errors import Reason, Refusal


def decide_return(
    release: ReleaseSet,
    failure: Failure,
    *,
    rules: EnvironmentSpec,
    barred: Mapping[str, BarredRow],
    history: Sequence[DeploymentRow],
) -> ReleaseSet | Refusal:
    """The release set to return to after a failure, or why the machine does not return by itself.

    An image is returned from once: it is barred then, and only people bring it back.
    """
    if not rules.rollback.automatic:
        return Refusal(
            (Reason("return-not-automatic", f"{rules.name} does not return by itself; use `mlops rollback`"),)
        )
    if failure.version.image in barred:
        return Refusal((Reason("returned-before", f"{failure.version.image[:19]} failed here before"),))
    return decide_rollback(release, leave=failure.version.image, barred=barred, history=history)


def decide_rollback(
    release: ReleaseSet,
    *,
    leave: str,
    barred: Mapping[str, BarredRow],
    history: Sequence[DeploymentRow],
) -> ReleaseSet | Refusal:
    """The release set with the last known good version alone, and the one before it as the next way back.

    Args:
        release: What is desired now.
        leave: Image to go away from.
        barred: Images that failed here.
        history: Stretches of serving of this product here, newest first.
    """
    candidates = find_good_versions(release, barred=barred, history=history, but=leave)
    if not candidates:
        text = f"{release.product} has no known good version to go back to; `mlops promote` another one"
        return Refusal((Reason("no-known-good", text),))
    target = replace(candidates[0], share=100)
    before = find_good_versions(release, barred=barred, history=history, but=leave, also_but=target.image)
    return replace(release, versions=(target,), last_known_good=before[0] if before else None)


def find_good_versions(
    release: ReleaseSet,
    *,
    barred: Mapping[str, BarredRow],
    history: Sequence[DeploymentRow],
    but: str,
    also_but: str = "",
) -> list[ServedVersion]:
    """Versions that served well, best first: the noted last known good, then by when they last served."""
    bad = barred.keys() | {but, also_but}
    found: dict[str, ServedVersion] = {}
    if release.last_known_good is not None:
        found[release.last_known_good.image] = replace(release.last_known_good, share=100)
    for row in history:
        if row.outcome != FAILED:
            found.setdefault(row.image, ServedVersion(row.number, row.image, row.candidate, 100))
    return [version for image, version in found.items() if image not in bad]
