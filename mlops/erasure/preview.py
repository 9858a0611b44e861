"""What a run would do, without doing it: who is asked for, what is affected, what it costs, whether it may start now.

Leaves to others: doing it (running.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from mlops.budgets.sql_budgets import leases
from mlops.clock import render_time
from mlops.datasets.fence import find_withdrawn
from mlops.datasets.forgetting import find_expired
from mlops.datasets.version import load_dataset_version
from mlops.deploy.erasure_rules import load_rules
from mlops.erasure import batches, sql_erasure
from mlops.erasure.affected import Affected, find_affected
from mlops.erasure.retraining import ReleasedVersion, choose_budget, find_products
from mlops.erasure.sql_erasure import FENCED
from mlops.erasure.work import Work
from mlops.project.opening import Project
from mlops.provenance.lineage import walk_back
from mlops.units import render_money


@dataclass(frozen=True)
class Preview:
    """What a run would do."""

    dataset: str
    state: str
    requests: int
    expired: int
    """People past retention who would join by themselves."""
    held: int
    """People whose rows stand in the pinned version."""
    due_us: int | None
    affected: Affected
    retrains: tuple[ReleasedVersion, ...]
    cost_micro_usd: int
    """What the trials to be repeated cost when they ran."""
    budgets: tuple[str, ...]
    timing: str

    def render_text(self) -> str:
        """For people."""
        due = "none" if self.due_us is None else render_time(self.due_us)
        it = self.affected
        places = sorted({f"{place.product}@{place.number} in {place.environment}" for place in it.environments})
        models = ", ".join(f"{model.product}@{model.number}" for model in it.models) or "none"
        names = ", ".join(f"{released.product}@{released.number}" for released in self.retrains) or "nothing"
        return "\n".join(
            [
                f"batch of {self.dataset}: {self.state}, {self.requests} requests, {self.expired} past retention",
                f"  nearest deadline  {due}",
                f"  in pinned data    {self.held} people",
                f"  shards            {len(it.shards)} in {len(it.manifests)} versions",
                f"  sweeps, trials    {len(it.sweeps)}, {len(it.trials)}",
                f"  models            {models}",
                f"  images            {len(it.images)}",
                f"  serving           {', '.join(places) or 'nowhere'}",
                f"  would retrain     {names}, about {render_money(self.cost_micro_usd)} "
                f"from {', '.join(self.budgets) or 'no budget'}",
                f"  when              {self.timing}",
            ]
        )


def preview_run(project: Project, dataset: str, work: Work, *, ordered: str = "") -> Preview:
    """Look, and change nothing.

    Raises:
        DatasetError: Unknown dataset.
    """
    rules, now_us = load_rules(project.places), project.clock.now_us()
    with project.ledger.read() as connection:
        batch = sql_erasure.find_open_batch(connection, dataset)
        mine = sql_erasure.list_requests(connection, batch_id=batch.batch_id) if batch else ()
        requests = (*mine, *sql_erasure.list_requests(connection, dataset=dataset, states=[FENCED]))
        retrains = sql_erasure.list_retrains(connection, dataset=dataset)
    subjects = frozenset(bytes.fromhex(row.subject) for row in requests)
    people = frozenset((dataset, subject) for subject in subjects)
    version = load_dataset_version(project.places, dataset)
    fenced = tuple(it for it in work.list_newest() if work.is_made_from(it, people))
    specs = find_products(project.places, dataset)
    timing = batches.decide_timing(
        rules,
        retrains=retrains,
        batch_id=batch.batch_id if batch else "",
        due_us=batches.find_due_us(requests),
        now_us=now_us,
        ordered=ordered,
    )
    return Preview(
        dataset=dataset,
        state=batch.state if batch else "not opened",
        requests=len(requests),
        expired=len(find_expired(version, now_us=now_us) - subjects),
        held=len(find_withdrawn(project.places, version, subjects=subjects)),
        due_us=batches.find_due_us(requests),
        affected=find_affected(project, dataset, subjects),
        retrains=fenced,
        cost_micro_usd=sum(estimate_cost(project, released) for released in fenced),
        budgets=tuple(
            sorted({choose_budget(project.places, rules, specs[it.product]) for it in fenced if it.product in specs})
        ),
        timing=timing.text if fenced else "now: nothing has to be trained again",
    )


def estimate_cost(project: Project, released: ReleasedVersion) -> int:
    """Micro-USD that one trial of the released sweep cost on average."""
    with project.ledger.read() as connection:
        sweeps = [step for step in walk_back(connection, (released.version,)).steps if step.kind == "sweep"]
        if not sweeps:
            return 0
        query = sa.select(sa.func.sum(leases.c.charged_micro_usd)).where(
            leases.c.sweep_id == sweeps[0].facts["sweep_id"]
        )
        charged = connection.scalar(query) or 0
    return round(charged / max(1, int(sweeps[0].facts.get("trials", 1))))
