"""Replays a trace through the same `decide` that runs live, on a given cluster, and measures what came out.

A job is rigid unless the trace says otherwise; stopping keeps its work and every start (first or again) costs
`Settings.restart_us` on its accelerators. Leaves to others: predictions (`prediction`), pictures (`plot`).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from mlops.budgets.board import Board
from mlops.budgets.decide import decide_on
from mlops.budgets.prediction import Predictor
from mlops.budgets.state import Action, Group, Node, Placement, Preempt, Refuse, Resize, Settings, Start, State
from mlops.budgets.trace import Job
from mlops.budgets.tree import BudgetNode, BudgetTree, RateCard
from mlops.clock import SECOND_US


@dataclass(frozen=True)
class SimulationResult:
    """What a replay measured; seconds."""

    completion_s: tuple[float, ...]
    """From submission to end, in the trace's order of job ids."""
    makespan_s: float
    utilisation: float
    """Accelerator-time of work done over that of the cluster until the last end."""
    preemptions: int
    refused: tuple[tuple[str, str], ...]
    use: tuple[tuple[float, float], ...]
    """Time and accelerators in use, at every change."""
    decisions: int
    actions: int

    def to_json(self) -> dict[str, float | int]:
        """Figures that systems are compared by; p99 is `sorted(jct)[int(n * 0.99)]`."""
        ordered = sorted(self.completion_s)
        count = len(ordered)
        return {
            "jobs": count,
            "average_completion_s": sum(ordered) / count if count else 0.0,
            "median_completion_s": ordered[count // 2] if count else 0.0,
            "p99_completion_s": ordered[int(count * 0.99)] if count else 0.0,
            "makespan_s": self.makespan_s,
            "utilisation": self.utilisation,
            "preemptions": self.preemptions,
            "refused": len(self.refused),
            "decisions": self.decisions,
            "actions": self.actions,
        }


def make_cluster(nodes: int, accelerators: int, *, kind: str = "gpu") -> tuple[Node, ...]:
    """`nodes` machines with `accelerators` each."""
    return tuple(Node(f"node-{number:04d}", kind, accelerators * 1000) for number in range(nodes))


def simulate(
    jobs: Sequence[Job],
    nodes: Sequence[Node],
    *,
    predictor: Predictor,
    settings: Settings | None = None,
    tree: BudgetTree | None = None,
) -> SimulationResult:
    """Run every job to its end.

    Args:
        jobs: In order of submission.
        nodes: The cluster.
        predictor: What the rule believes about durations.
        settings: Knobs of the rule.
        tree: Budgets of the jobs; without one, each budget named in the trace stands alone and has no quota.
    """
    budgets = tree or BudgetTree.of((BudgetNode(name) for name in {job.budget for job in jobs}), rates=RateCard(()))
    state = State(tree=budgets, nodes=tuple(nodes), groups=(), settings=settings or Settings())
    return _Replay(jobs, state, predictor).run()


@dataclass
class _Progress:
    """The truth about a job, which the rule does not see."""

    job: Job
    left_us: int
    """Run time with the full size that is left."""
    started_us: int = 0
    """When the running stretch began to do work; after the restart cost."""
    units: int = 0
    epoch: int = 0
    is_running: bool = False

    def ran_us(self, now_us: int) -> int:
        """Work done so far, as run time with the full size."""
        done = self.job.duration_us - self.left_us
        if self.is_running:
            done += max(now_us - self.started_us, 0) * self.units // self.job.units
        return done


@dataclass
class _Replay:
    jobs: Sequence[Job]
    state: State
    predictor: Predictor
    now_us: int = 0
    events: list[tuple[int, int, str, int]] = field(default_factory=list)
    """Time, order, job id (empty: only look again), epoch."""
    progress: dict[str, _Progress] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    use: list[tuple[float, float]] = field(default_factory=list)
    preemptions: int = 0
    decisions: int = 0
    actions: int = 0

    def run(self) -> SimulationResult:
        board = Board(self.state, now_us=0)
        arriving = 0
        while arriving < len(self.jobs) or self.events:
            next_arrival = self.jobs[arriving].submitted_us if arriving < len(self.jobs) else None
            next_event = self.events[0][0] if self.events else None
            self.now_us = min(time for time in (next_arrival, next_event) if time is not None)
            is_changed = self._end_due(board)
            while arriving < len(self.jobs) and self.jobs[arriving].submitted_us <= self.now_us:
                self._arrive(board, self.jobs[arriving])
                arriving += 1
                is_changed = True
            if is_changed or any(board.waiting.values()):
                self._decide(board)
        return self._sum_up()

    def _end_due(self, board: Board) -> bool:
        is_changed = False
        while self.events and self.events[0][0] <= self.now_us:
            _, _, job_id, epoch = heapq.heappop(self.events)
            progress = self.progress.get(job_id)
            if progress is None or progress.epoch != epoch:
                continue
            board.remove(job_id)
            del self.progress[job_id]
            self.ended[job_id] = self.now_us
            self.predictor.finish(progress.job, now_us=self.now_us)
            is_changed = True
        return is_changed

    def _arrive(self, board: Board, job: Job) -> None:
        self.progress[job.job_id] = _Progress(job, job.duration_us)
        self.predictor.submit(job)
        group = Group(
            group_id=job.job_id,
            budget=job.budget,
            kind=job.kind,
            units=job.units,
            remaining_us=max(self.predictor.predict(job, ran_us=0), 1),
            submitted_us=job.submitted_us,
            priority=job.priority,
            minimum_units=job.minimum_units,
            maximum_units=job.units if job.step_units else 0,
            step_units=job.step_units,
            waiting_since_us=job.submitted_us,
            keeps_work=True,
        )
        board.add(group, now_us=self.now_us)

    def _decide(self, board: Board) -> None:
        self._refresh(board)
        actions = decide_on(board, self.now_us, with_reasons=False)
        self.decisions += 1
        self.actions += len(actions)
        for action in actions:
            self._apply(board, action)
        if actions:
            used = sum(board.total.values()) - sum(board.free.values())
            self.use.append((self.now_us / SECOND_US, used / 1000))

    def _refresh(self, board: Board) -> None:
        """New predictions for what the predictor wants to look at again, and for groups that overran theirs."""
        for job_id in self.predictor.list_stale(self.now_us):
            progress = self.progress.get(job_id)
            if progress is not None:
                self._predict(board, progress)
        for running in board.running.values():
            for entry in running.values():
                if entry.ends_us <= self.now_us:
                    self._predict(board, self.progress[entry.group.group_id])

    def _predict(self, board: Board, progress: _Progress) -> None:
        entry = board.entries[progress.job.job_id]
        ran_us = progress.ran_us(self.now_us)
        remaining_us = max(self.predictor.predict(progress.job, ran_us=ran_us), 1)
        if entry.status != "waiting":
            remaining_us += max(progress.started_us - self.now_us, 0)
        board.predict(entry, remaining_us=remaining_us, now_us=self.now_us)

    def _apply(self, board: Board, action: Action) -> None:
        if isinstance(action, Refuse):
            self.refused.append((action.group_id, action.reason.text))
            board.remove(action.group_id)
            del self.progress[action.group_id]
            return
        if not isinstance(action, Start | Preempt | Resize):
            return
        progress = self.progress[action.group_id]
        if isinstance(action, Preempt):
            self.preemptions += 1
            self._pause(progress)
            self.predictor.pause(progress.job, ran_us=progress.ran_us(self.now_us))
            if action.group_id in board.entries and board.entries[action.group_id].status == "waiting":
                self._predict(board, progress)
            return
        self._pause(progress)
        delay_us = self.state.settings.restart_us if isinstance(action, Start) else 0
        self._run(progress, action.placement, delay_us=delay_us)

    def _pause(self, progress: _Progress) -> None:
        progress.left_us = max(progress.job.duration_us - progress.ran_us(self.now_us), 0)
        progress.is_running = False
        progress.epoch += 1

    def _run(self, progress: _Progress, placement: Placement, *, delay_us: int) -> None:
        progress.units = sum(units for _, units in placement)
        progress.started_us = self.now_us + delay_us
        progress.is_running = True
        ends_us = progress.started_us + -(-progress.left_us * progress.job.units // progress.units)
        job_id = progress.job.job_id
        heapq.heappush(self.events, (ends_us, 0, job_id, progress.epoch))
        self.predictor.start(progress.job, ran_us=progress.ran_us(self.now_us), now_us=progress.started_us)
        protected_us = self.now_us + self.state.settings.minimum_run_us
        if protected_us > self.now_us:
            heapq.heappush(self.events, (protected_us, 1, "", 0))

    def _sum_up(self) -> SimulationResult:
        jobs = {job.job_id: job for job in self.jobs}
        first = min((job.submitted_us for job in self.jobs), default=0)
        last = max(self.ended.values(), default=first)
        work = sum(jobs[job_id].units * jobs[job_id].duration_us for job_id in self.ended)
        capacity = sum(node.units for node in self.state.nodes) * (last - first)
        return SimulationResult(
            completion_s=tuple((end - jobs[each].submitted_us) / SECOND_US for each, end in sorted(self.ended.items())),
            makespan_s=last / SECOND_US,
            utilisation=work / capacity if capacity else 0.0,
            preemptions=self.preemptions,
            refused=tuple(self.refused),
            use=tuple(self.use),
            decisions=self.decisions,
            actions=self.actions,
        )
