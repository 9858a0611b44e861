"""Ending a version that may serve no longer, with nothing newer ready: fall back to a good clean version, or stop.

Leaves to others: that its time is up (mlops/erasure), stopping instances (reconciler.py).
"""

from __future__ import annotations

from mlops.deploy import sql_deployments
from mlops.deploy.admission import ROLLBACK_STEP
from mlops.deploy.desired_state import DesiredState, ReleaseSet
from mlops.deploy.environment import EnvironmentSpec
from mlops.deploy.erasure_fence import bar_fenced, find_fenced_images, list_images
from mlops.deploy.going_back import decide_rollback
from mlops.deploy.site import Site
from mlops.deploy.sql_deployments import DesiredRow
from mlops.deploy.state_keeper import Hook, ignore_step, load_desired_state, write_desired
from mlops.errors import Refusal


def retire_product(
    site: Site, rules: EnvironmentSpec, product: str, *, why: str, hook: Hook = ignore_step
) -> DesiredRow | Refusal | None:
    """Take fenced versions of a product out of what is desired, by the rule `at_deadline` of the environment.

    Returns:
        The committed state; None when nothing fenced was desired; a refusal when the file was changed by hand.
    """
    with site.deciding(rules.name):
        state = load_desired_state(site, rules.name)
        release = state.find_product(product)
        if release is None:
            return None
        target = _find_target(site, rules, release)
        if target == release:
            return None
        after = state.without_product(product) if target is None else state.with_product(target)
        where = "nothing" if target is None else f"version {target.versions[0].number}"
        inputs = {"left": release.versions[0].image} | ({} if target is None else {"image": target.versions[0].image})
        return write_desired(
            site,
            after,
            step_kind=ROLLBACK_STEP,
            product=product,
            inputs=inputs,
            facts={"cause": "erasure", "why": why, "number": target.versions[0].number if target else None},
            cause="erasure",
            why=f"From version {release.versions[0].number} of {product} to {where}: {why}",
            hook=hook,
        )


def find_fenced_desired(site: Site, state: DesiredState, product: str) -> dict[str, str]:
    """Images of a product that are desired, or kept to go back to, and are fenced: image to the first ground."""
    release = state.find_product(product)
    if release is None:
        return {}
    with site.ledger.read() as connection:
        return find_fenced_images(connection, site.places, list_images(release))


def _find_target(site: Site, rules: EnvironmentSpec, release: ReleaseSet) -> ReleaseSet | None:
    """What may go on serving; None when nothing may."""
    with site.ledger.read() as connection:
        barred = sql_deployments.load_barred(connection, rules.name)
        history = sql_deployments.load_deployments(connection, environment=rules.name, product=release.product)
        fenced = find_fenced_images(connection, site.places, list_images(release))
        bad = bar_fenced(
            connection,
            site.places,
            release,
            environment=rules.name,
            barred=barred,
            history=history,
            now_us=site.clock.now_us(),
        )
    served = [version for version in release.versions if version.image in fenced]
    if not served:
        good = release.last_known_good
        return (
            release
            if good is None or good.image not in fenced
            else ReleaseSet(release.product, release.versions, release.consumers, None)
        )
    if rules.at_deadline == "stop":
        return None
    target = decide_rollback(release, leave=served[0].image, barred=bad, history=history)
    return None if isinstance(target, Refusal) else target
