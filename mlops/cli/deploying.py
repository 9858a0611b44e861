"""What the commands about environments share: opening the site, choosing a runtime. Leaves to others: all decisions."""

from __future__ import annotations

from collections.abc import Callable

import click

from mlops.deploy.environment import EnvironmentSpec
from mlops.deploy.instance_check import load_golden_cases
from mlops.deploy.reconciler import Reconciler
from mlops.deploy.runtimes import choose_runtime
from mlops.deploy.site import Site
from mlops.project.opening import open_project


def open_site() -> Site:
    """The project around the current folder, as the deploy room needs it."""
    project = open_project()
    return Site(project.places, project.ledger, project.clock, project.ids, project.step_book)


def make_reconciler(site: Site, rules: EnvironmentSpec, *, say: Callable[[str], None] = click.echo) -> Reconciler:
    """A reconciler with this machine's runtime and the judged models' golden answers."""
    return Reconciler(
        site=site,
        rules=rules,
        runtime=choose_runtime(rules.runtimes, state=site.places.serving_state),
        golden=lambda product, version: load_golden_cases(site.places, product, version),
        say=say,
    )
