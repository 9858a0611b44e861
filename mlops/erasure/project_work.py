"""The real work of a batch: the project's own steps, environments and stores; see `Work`.

Leaves to others: the order of it (running.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlops.deploy.erasure_fence import find_fence
from mlops.deploy.erasure_rules import load_rules
from mlops.deploy.site import Site
from mlops.erasure.affected import AffectedModel, find_affected
from mlops.erasure.purging import Receipt, purge
from mlops.erasure.retraining import (
    ReleasedVersion,
    Retrained,
    choose_budget,
    find_newest_release,
    find_products,
    plan_retrain,
    retrain,
)
from mlops.erasure.rollout import Converge, Move, open_site, reconcile_here, roll_out
from mlops.erasure.work import People
from mlops.errors import Refusal
from mlops.project.opening import Project


@dataclass(frozen=True)
class ProjectWork:
    """Trains, serves and purges for real."""

    project: Project
    dataset: str
    allow_dirty: bool
    say: Callable[[str], None]
    converge: Converge = reconcile_here

    @property
    def site(self) -> Site:
        """Where its products serve."""
        return open_site(self.project)

    def list_newest(self) -> tuple[ReleasedVersion, ...]:
        """The newest released version of each product on the dataset."""
        with self.project.ledger.read() as connection:
            found = [find_newest_release(connection, name) for name in find_products(self.project.places, self.dataset)]
        return tuple(it for it in found if it is not None)

    def is_made_from(self, released: ReleasedVersion, people: People) -> bool:
        """By the chain behind its image."""
        with self.project.ledger.read() as connection:
            fence = find_fence(connection, self.project.places, released.image)
        return bool(fence.problems or fence.withdrawn & people)

    def list_made_from(self, subjects: frozenset[bytes]) -> tuple[AffectedModel, ...]:
        """By the lineage graph."""
        return find_affected(self.project, self.dataset, subjects).models

    def retrain(self, released: ReleasedVersion, withdrawn: frozenset[bytes]) -> Retrained | Refusal:
        """Through the steps of a release, with the released parameters, paid by the erasure budget."""
        places = self.project.places
        spec = find_products(places, self.dataset)[released.product]
        budget = choose_budget(places, load_rules(places), spec)
        planned = plan_retrain(spec, released, budget=budget)
        return retrain(self.project, planned, withdrawn=withdrawn, allow_dirty=self.allow_dirty, say=self.say)

    def roll_out(self, numbers: Mapping[str, int], people: People, *, is_due: bool) -> tuple[Move, ...]:
        """In every environment of the project."""
        return roll_out(self.site, numbers, people=people, is_due=is_due, converge=self.converge, say=self.say)

    def purge(self, subjects: frozenset[bytes]) -> tuple[Receipt, ...]:
        """Everything that the lineage says was made from them."""
        return purge(self.project, find_affected(self.project, self.dataset, subjects), say=self.say)
