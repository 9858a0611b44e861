"""Taking a version out of an environment, by itself or by command: bar it, move traffic, write the state to return to.

Leaves to others: noticing that it is unfit (reconciler.py), the decision where to go (going_back.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from mlops.deploy import sql_deployments, traffic_switch
from mlops.deploy.admission import ROLLBACK_STEP, admit
from mlops.deploy.desired_state import ReleaseSet, ServedVersion
from mlops.deploy.environment import EnvironmentSpec
from mlops.deploy.erased import load_erased
from mlops.deploy.erasure_fence import bar_fenced
from mlops.deploy.going_back import decide_return, decide_rollback, find_good_versions
from mlops.deploy.reconcile_plan import Failure
from mlops.deploy.site import Site
from mlops.deploy.sql_deployments import BarredRow, DeploymentRow, DesiredRow
from mlops.deploy.state_keeper import Hook, ignore_step, load_desired_state, write_desired
from mlops.errors import Reason, Refusal


def withdraw_version(
    site: Site, rules: EnvironmentSpec, product: str, failure: Failure, *, hook: Hook = ignore_step
) -> str:
    """Go back from an unfit version by itself; one line on what became of it.

    It is barred first, so that a crash right after leads to the same end.
    """
    with site.deciding(rules.name):
        release = load_desired_state(site, rules.name).find_product(product)
        if release is None or release.find_image(failure.version.image) is None:
            return f"version {failure.version.number} is not desired any more"
        with site.ledger.read() as connection:
            barred = load_unfit(site, connection, rules.name)
            history = sql_deployments.load_deployments(connection, environment=rules.name, product=product)
            others = {image: row for image, row in barred.items() if image != failure.version.image}
            others = _bar_fenced(site, connection, rules, release, barred=others, history=history)
        others.pop(failure.version.image, None)
        target = decide_return(release, failure, rules=rules, barred=others, history=history)
        if isinstance(target, Refusal) and target.reasons[0].code == "return-not-automatic":
            return target.render_text()
        bar_version(site, rules.name, failure.version.image, cause="automatic-return", why=failure.why)
        hook("after-bar")
        if isinstance(target, Refusal):
            return target.render_text()
        switch_if_warm(site, rules.name, product, image=target.versions[0].image)
        written = write_return(site, rules, release, target, cause="automatic-return", why=failure.why, hook=hook)
    if isinstance(written, Refusal):
        return written.render_text()
    traffic_switch.release_hold(site.product_folder(rules.name, product))
    return f"went back to {_name(target.versions[0])}, commit {(written.commit_hash or '')[:12]}"


def roll_back(
    site: Site,
    rules: EnvironmentSpec,
    product: str,
    *,
    leave: str,
    why: str,
    hook: Hook = ignore_step,
    to: int | None = None,
) -> ReleaseSet | Refusal:
    """Write the state of a rollback that a person asked for; traffic has moved before if it could.

    Args:
        site: Where.
        rules: The environment.
        product: Which product.
        leave: Image to go away from; when it is not desired any more, somebody was faster and nothing is done.
        why: For the record.
        hook: See `Hook`.
        to: Number of the version to go back to; by default the last known good.
    """
    folder = site.product_folder(rules.name, product)
    with site.deciding(rules.name):
        release = load_desired_state(site, rules.name).find_product(product)
        if release is None:
            return Refusal((Reason("nothing-serves", f"nothing was ever promoted to {rules.name} for {product}"),))
        if release.find_image(leave) is None:
            traffic_switch.release_hold(folder)
            return release
        target = plan_rollback(site, rules, release, leave=leave, to=to)
        if isinstance(target, Refusal):
            return target
        bar_version(site, rules.name, leave, cause="rollback", why=why)
        hook("after-bar")
        written = write_return(site, rules, release, target, cause="rollback", why=why, hook=hook)
        if isinstance(written, Refusal):
            return written
        traffic_switch.release_hold(folder)
        return target


def plan_rollback(
    site: Site, rules: EnvironmentSpec, release: ReleaseSet, *, leave: str, to: int | None = None
) -> ReleaseSet | Refusal:
    """Where a rollback would go; the version to go back to is admitted as any other is."""
    with site.ledger.read() as connection:
        barred = load_unfit(site, connection, rules.name)
        history = sql_deployments.load_deployments(connection, environment=rules.name, product=release.product)
        barred = _bar_fenced(site, connection, rules, release, barred=barred, history=history)
        if to is not None:
            erased = _refuse_erased(rules.name, release, history, barred, leave=leave, to=to)
            if erased is not None:
                return erased
            history = tuple(row for row in history if row.number == to)
            release = ReleaseSet(release.product, release.versions, release.consumers, None)
        target = decide_rollback(release, leave=leave, barred=barred, history=history)
        if isinstance(target, Refusal):
            return target
        admitted = admit(
            connection,
            target.versions[0].image,
            environment=rules.name,
            places=site.places,
            keyring=site.load_keyring(),
        )
    return admitted if isinstance(admitted, Refusal) else target


def load_unfit(site: Site, connection: sa.Connection, environment: str) -> dict[str, BarredRow]:
    """What no return may lead to: images that failed here, and images that were purged for a person who withdrew."""
    erased = load_erased(connection, keyring=site.load_keyring())
    purged = {
        it.digest: BarredRow(environment, it.digest, it.at_us, "erasure", it.reason.text) for it in erased.values()
    }
    return {**purged, **sql_deployments.load_barred(connection, environment)}


def _refuse_erased(
    environment: str,
    release: ReleaseSet,
    history: Sequence[DeploymentRow],
    barred: Mapping[str, BarredRow],
    *,
    leave: str,
    to: int,
) -> Refusal | None:
    """A version that was purged, or made from people who withdrew, is not gone back to; the next best is named."""
    wanted = next((barred[row.image] for row in history if row.number == to and row.image in barred), None)
    if wanted is None or wanted.cause != "erasure":
        return None
    good = find_good_versions(release, barred=barred, history=history, but=leave)
    offer = f"`mlops rollback {environment} --to {good[0].number}`" if good else "no other version served well here"
    return Refusal((Reason("erased", f"version {to}: {wanted.why}; next best: {offer}"),))


def _bar_fenced(
    site: Site,
    connection: sa.Connection,
    rules: EnvironmentSpec,
    release: ReleaseSet,
    *,
    barred: dict[str, BarredRow],
    history: tuple[DeploymentRow, ...],
) -> dict[str, BarredRow]:
    now_us = site.clock.now_us()
    return bar_fenced(
        connection, site.places, release, environment=rules.name, barred=barred, history=history, now_us=now_us
    )


def bar_version(site: Site, environment: str, image: str, *, cause: str, why: str) -> bool:
    """Bar an image here until people approve it anew; False when it was barred before."""
    with site.ledger.write() as transaction:
        row = BarredRow(environment=environment, image=image, at_us=transaction.now_us, cause=cause, why=why)
        return sql_deployments.bar_digest(transaction, row)


def write_return(
    site: Site,
    rules: EnvironmentSpec,
    release: ReleaseSet,
    target: ReleaseSet,
    *,
    cause: str,
    why: str,
    hook: Hook,
) -> DesiredRow | Refusal:
    """Commit the state of going back from `release` to `target`."""
    state = load_desired_state(site, rules.name).with_product(target)
    version = target.versions[0]
    return write_desired(
        site,
        state,
        step_kind=ROLLBACK_STEP,
        product=release.product,
        inputs={"image": version.image, "left": release.versions[0].image},
        facts={"number": version.number, "cause": cause, "why": why},
        cause=cause,
        why=f"From {_name(release.versions[0])} to {_name(version)} of {release.product}: {why}",
        hook=hook,
    )


def _name(version: ServedVersion) -> str:
    """A version as people tell it apart: two images may serve one model version."""
    return f"version {version.number} ({version.image[7:19]})"


def switch_if_warm(site: Site, environment: str, product: str, *, image: str) -> bool:
    """Move all traffic to an image at once if it stands ready; the next round does it otherwise."""
    folder = site.product_folder(environment, product)
    way = traffic_switch.read_way_back(folder)
    if way is None or way["image"] != image:
        return False
    try:
        return traffic_switch.switch_back(folder) is not None
    except (OSError, ValueError):
        return False
