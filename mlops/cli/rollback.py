"""`mlops rollback`: back to the last known good, in traffic first and then in git.

Mostly traffic has moved before this module is imported (mlops/deploy/first_move.py); the less simple calls act here.
Leaves to others: the switch (mlops/deploy/traffic_switch.py), the record (mlops/deploy/withdrawal.py).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from mlops.cli.rendering import emit_json, refuse
from mlops.deploy import traffic_switch
from mlops.errors import ProjectError, Refusal
from mlops.places import Places, find_root


@click.command()
@click.argument("environment")
@click.option("--product", help="Needed when the environment serves several.")
@click.option("--to", "number", type=int, help="Version to go back to; default: the last known good.")
@click.option("--reason", default="rolled back by hand", show_default=True, help="Why, for the record.")
@click.option("--dry-run", is_flag=True, help="Show where it would go.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.option("--moved", hidden=True, help="What mlops/deploy/first_move.py did before this command was loaded.")
def rollback(
    environment: str,
    product: str | None,
    number: int | None,
    reason: str,
    *,
    dry_run: bool,
    as_json: bool,
    moved: str | None,
) -> None:
    """Move ENVIRONMENT back to the last known good version: traffic first (milliseconds), then the signed commit."""
    places = Places(find_root(Path.cwd()))
    name = product or _only_product(places, environment)
    way = _read_move(moved) or (None if dry_run else _switch(places, environment, name, number))
    if way is not None and not as_json:
        click.echo(f"traffic of {name} moved to the last known good version")
    _write_down(environment, name, number=number, reason=reason, way=way, is_dry_run=dry_run, as_json=as_json)


def _read_move(moved: str | None) -> dict[str, Any] | None:
    """`<image that lost traffic>,<begun>,<confirmed>`, as the first move told."""
    if moved is None:
        return None
    image, begun, switched = moved.split(",")
    return {"from_image": image, "begun_ns": int(begun), "switched_ns": int(switched)}


def _switch(places: Places, environment: str, product: str, number: int | None) -> dict[str, Any] | None:
    """Traffic first, where the wanted version stands ready."""
    folder = places.serving_state / environment / product
    way = traffic_switch.read_way_back(folder)
    if way is None or number not in (None, way["number"]):
        return None
    try:
        return traffic_switch.switch_back(folder)
    except (OSError, ValueError) as error:
        click.echo(f"traffic could not be moved at once ({error}); the reconciler will", err=True)
        return None


def _only_product(places: Places, environment: str) -> str:
    """The one product that the environment serves on this machine.

    Raises:
        ProjectError: None, or several, or there is no such environment.
    """
    found = sorted(path.parent.name for path in (places.serving_state / environment).glob("*/slots"))
    if len(found) == 1:
        return found[0]
    if not found:
        from mlops.deploy.environment import load_environment  # loads pydantic

        load_environment(places, environment)  # an unknown one is said as such
        raise ProjectError(
            f"nothing serves in {environment!r} on this machine",
            hint="see `mlops deploy status`; name it with --product",
        )
    raise ProjectError(f"{environment} serves {', '.join(found)}", hint="say which with --product NAME")


def _write_down(
    environment: str,
    product: str,
    *,
    number: int | None,
    reason: str,
    way: dict[str, Any] | None,
    is_dry_run: bool,
    as_json: bool,
) -> None:
    from mlops.cli.deploying import make_reconciler, open_site  # loads SQL and pydantic: after the traffic
    from mlops.deploy.environment import load_environment
    from mlops.deploy.state_keeper import load_desired_state
    from mlops.deploy.withdrawal import plan_rollback, roll_back

    started = time.monotonic()
    site = open_site()
    rules = load_environment(site.places, environment)
    release = load_desired_state(site, environment).find_product(product)
    if release is None:
        raise ProjectError(
            f"nothing was ever promoted to {environment} for {product}", hint="see `mlops deploy status`"
        )
    leave = way["from_image"] if way else release.versions[0].image
    if is_dry_run:
        target = plan_rollback(site, rules, release, leave=leave, to=number)
    else:
        target = roll_back(site, rules, product, leave=leave, why=reason, to=number)
    if isinstance(target, Refusal):
        moved = "; its traffic has moved and stays where it is" if way else ""
        refuse(target, what=f"rolling back {environment}{moved}")
    goal = target.versions[0]
    if is_dry_run:
        click.echo(f"would go back to version {goal.number} ({goal.image})")
        return
    say = (lambda line: None) if as_json else click.echo
    say(f"{environment} is desired to serve {product}@{goal.number} again, recorded in git")
    outcome = make_reconciler(site, rules, say=say).run_once()
    is_left = isinstance(outcome, Refusal)  # a running --watch does the rest
    if as_json:
        emit_json({
            "environment": environment,
            "product": product,
            "number": goal.number,
            "image": goal.image,
            "was_warm": way is not None,
            "begun_ns": way.get("begun_ns") if way else None,
            "switched_ns": way["switched_ns"] if way else None,
            "recorded_seconds": time.monotonic() - started,
            "left_to_watcher": is_left,
        })  # fmt: skip
    elif is_left:
        click.echo("a running reconciler does the rest")
