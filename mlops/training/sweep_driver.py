"""The driver of a sweep: one loop that proposes, places, pays, listens and records; no Ray, torch or MLflow in it.

Its state is small and follows from the ledger: a resumed driver replays finished trials through the search and goes on.
Leaves to others: proposals (optuna_search), worker groups (`Crew`), money (`Leases`), the record (sweep_book).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlops.budgets.lease_queue import DROPPED, PASSING
from mlops.budgets.prediction import predict_trial
from mlops.clock import SECOND_US, Clock
from mlops.errors import LedgerUnreachable, Reason, Refusal
from mlops.ids import Ids
from mlops.training.attempt import (
    Answer,
    Crew,
    Ended,
    Event,
    Gone,
    GroupShape,
    Notice,
    Progressed,
    Ready,
    Reported,
    Usage,
)
from mlops.training.early_stop import find_early_stop
from mlops.training.leasing import GroupLeases, renew_if_due, reserve_group, settle_group, shorten_group
from mlops.training.optuna_search import Result, Search, count_trials
from mlops.training.seeds import derive_seed
from mlops.training.spec import SweepSpec
from mlops.training.sql_trials import COMPLETE, FAILED, PRUNED, RUNNING, ReportRow, TrialRow
from mlops.training.sweep_book import SweepBook
from mlops.training.sweep_state import DriverTask, HeldGroup, OpenTrial
from mlops.training.warm_groups import WarmGroup, WarmShelf
from mlops.training.winner import is_better
from mlops.units import render_money

POLL_SECONDS = 1.0
"""The driver looks at least so often whether it shall stop and whether leases are due."""
STOPPED_BY_REQUEST = "stopped by request"
_YIELDED = "YIELDED"  # within a driver that stops; the ledger says RUNNING, and `resume` goes on with it
GROW_SECONDS = 300.0
"""An elastic sweep tries all workers again after this."""
OWN_LIMIT = "limit-exceeded"
"""Code of the lease book for a sweep's own limit; its budget's is `cap-exceeded`."""
AHEAD_SECONDS = 2.0
"""Where trials take less, a group gets the next one before it has ended this one, and does not wait for the driver."""
RETRY_SECONDS = 5.0
"""A group that was refused or lost is tried again after this."""


class SweepDriver:
    """Drives one sweep to its end."""

    def __init__(
        self,
        spec: SweepSpec,
        *,
        task: DriverTask,
        book: SweepBook,
        crew: Crew,
        leases: GroupLeases,
        clock: Clock,
        ids: Ids,
        say: Callable[[str], None],
    ) -> None:
        self._spec, self._task, self._book, self._crew = spec, task, book, crew
        self._leases, self._clock, self._ids, self._say = leases, clock, ids, say
        self._shelf = WarmShelf(book.ledger, leases)
        self._search = Search(spec, earlier=task.earlier)
        self._trials: dict[int, OpenTrial] = {}
        self._open: dict[int, OpenTrial] = {}
        """Trials that are RUNNING: the others only wait to be told."""
        self._best: OpenTrial | None = None
        self._after: list[Callable[[], None]] = []
        """What is said to workers once the ledger has what it follows from."""
        self._groups: dict[str, HeldGroup] = {}
        self._total = count_trials(spec)
        self._past: dict[int, TrialRow] = {}
        self._past_reports: dict[int, dict[int, float]] = {}
        self._answered: dict[tuple[int, int], Answer] = {}
        self._refusal: Refusal | None = None
        self._retry_us = 0
        self._beat_us = -(10**12)
        self._progress: dict[int, Progressed] = {}
        """Of trials since the last beat, for people."""
        self._stopping = ""
        self._leaves_rest = False
        """Trials that are not done are not gone on with: by request, or because the spend is reached."""
        self._lost_groups = 0
        self._queued = ""
        """Key of the place that is waited for."""
        self._told_wait = ""
        self._finished, self._finished_us = 0, 0
        """Complete trials of this driver, and their time together."""
        self._workers, self._shrunk_us = spec.workers, 0
        """Of the next group."""

    def run(self, *, past: list[TrialRow], reports: list[ReportRow]) -> Refusal | str:
        """To the end of the sweep.

        Args:
            past: Trials that exist in the ledger.
            reports: Their reports.

        Returns:
            Why it stopped before its last trial, or "" when all were done, or the refusal of its budget.
        """
        self._past = {row.number: row for row in past}
        objective = self._spec.objectives[0].metric
        for report in reports:
            if objective in report.metrics:
                self._past_reports.setdefault(report.number, {})[report.epoch] = report.metrics[objective]
        try:
            while not self._is_done():
                self._beat()
                with self._committed():
                    self._propose()
                if self._is_done():
                    break
                self._staff()
                if self._refusal is not None and not self._groups and not self._leaves_rest:
                    return self._refusal
                self._retire()
                with self._committed():
                    self._assign()
                self._renew()
                self._take_all(self._crew.next_events(timeout_seconds=POLL_SECONDS))
                self._end_silent_groups()
            if self._stopping != STOPPED_BY_REQUEST:
                self._drop_rest()
                self._keep_groups()
        finally:
            self._release()
        return self._stopping

    def _release(self) -> None:
        """Workers end although the ledger may be lost; whoever goes on with the sweep settles what was not."""
        lost: LedgerUnreachable | None = None
        for name in list(self._groups):
            try:
                self._drop_group(name)
            except LedgerUnreachable as error:
                lost = error
        if lost is not None:
            raise lost
        self._withdraw()

    @contextmanager
    def _committed(self) -> Iterator[None]:
        """One ledger transaction for all that is recorded inside; workers hear of it only when it is durable."""
        with self._book.together():
            yield
        after, self._after = self._after, []
        for effect in after:
            effect()

    # ---- proposals

    def _is_done(self) -> bool:
        return not self._open and (bool(self._stopping) or len(self._trials) >= self._total)

    def _close_trial(self, trial: OpenTrial, *, state: str) -> None:
        trial.state, trial.is_waiting = state, False
        self._open.pop(trial.number, None)
        for key in [key for key in self._answered if key[0] == trial.number]:
            del self._answered[key]

    def _propose(self) -> None:
        """Ask and tell as far as possible; finished trials of the ledger pass at once.

        Asking comes first: proposal n must not see more than the results up to n - lag, however many are there already.
        """
        while True:
            number = len(self._trials)
            is_due = number < self._total and self._search.told > number - self._spec.used_lag
            if is_due and not self._stopping:
                self._ask(number)
            elif not self._tell_next():
                return

    def _tell_next(self) -> bool:
        trial = self._trials.get(self._search.told)
        if trial is None or trial.state in (RUNNING, _YIELDED):
            return False
        self._search.tell(trial.number, Result(trial.state, trial.metrics))
        if trial.state == COMPLETE:
            best = self._best
            if best is None or is_better(self._spec, trial.metrics, than=best.metrics):
                self._best = trial
        best, told = self._best, self._search.told
        if best is not None and not self._stopping:
            self._stopping = find_early_stop(self._spec, best=best.number, metrics=best.metrics, told=told)
        return True

    def _ask(self, number: int) -> None:
        params = self._search.propose(number)
        row = self._past.get(number)
        member = self._task.find_member(params)
        seed = member.seed if member is not None else derive_seed(self._spec.seed, "trial", number)
        trial = OpenTrial(number=number, params=params, seed=seed)
        self._trials[number] = self._open[number] = trial
        if row is None:
            self._book.begin_trial(number, params=params, seed=trial.seed)
            return
        for epoch, value in sorted(self._past_reports.get(number, {}).items()):
            is_pruned = self._search.observe(number, epoch=epoch, value=value)
            self._answered[number, epoch] = Answer.PRUNE if is_pruned else Answer.CONTINUE
        trial.params, trial.metrics = dict(row.params), dict(row.metrics)
        trial.attempt = self._book.last_attempt(number)
        if row.state != RUNNING:
            self._close_trial(trial, state=row.state)

    # ---- worker groups

    def _staff(self) -> None:
        """As many groups as there is work for, up to the spec; each pays before it starts."""
        now_us = self._clock.monotonic_us()
        waiting = sum(trial.is_waiting for trial in self._open.values())
        free = sum(group.trial is None for group in self._groups.values())
        if waiting <= free or len(self._groups) >= self._spec.groups:
            self._withdraw()
            return
        if now_us < self._retry_us:
            return
        shape = self._next_shape(now_us)
        likeness = self._crew.likeness(shape)
        warm = self._shelf.take(likeness) if likeness else None
        name = warm.worker_group if warm is not None else self._ids.new("group")
        self._queued = self._queued or f"{self._book.sweep_id}:{self._ids.new('place')}"
        answer = reserve_group(
            self._leases,
            spec=self._spec,
            workers=shape.workers,
            sweep_id=self._book.sweep_id,
            key=self._queued,
            holder=self._task.holder,
            spender=self._task.spender,
            expected_seconds=self._expect_seconds(),
            clock=self._clock,
        )
        if isinstance(answer, Refusal):
            self._crew.end_left_over([name] if warm is not None else [])
            if self._makes_room(answer, now_us=now_us):
                self._staff()
            return
        self._refusal = None
        self._book.add_lease(name, answer)
        self._groups[name] = HeldGroup(
            lease=answer, shape=shape, key=self._queued, heard_us=now_us, idle_since_us=now_us
        )
        self._queued = self._told_wait = ""
        if warm is None or not self._crew.adopt_group(name, shape=shape, until_us=answer.until_us):
            self._crew.start_group(
                name, shape=shape, until_us=answer.until_us, start_deadline_seconds=self._spec.start_deadline
            )
        self._staff()

    def _next_shape(self, now_us: int) -> GroupShape:
        """All workers, or for some time fewer when an elastic group found no place."""
        if not self._queued and now_us - self._shrunk_us > GROW_SECONDS * SECOND_US:
            self._workers = self._spec.workers
        return GroupShape(self._workers, self._spec.accelerators.kind, self._spec.accelerators.count)

    def _shrink(self) -> bool:
        """Whether an elastic group may be tried with half the workers."""
        least = self._spec.min_workers or self._spec.workers
        if self._workers <= least:
            return False
        self._withdraw()  # what is waited for was of another size
        self._workers, self._shrunk_us = max(least, self._workers // 2), self._clock.monotonic_us()
        self._say(f"no place for all workers: the next group has {self._workers}")
        return True

    def _keep_groups(self) -> None:
        """Groups that are whole wait, warm and paid, for the next sweep; the others go with the lease."""
        for name, group in list(self._groups.items()):
            likeness, lease = self._crew.likeness(group.shape), group.lease
            if not (likeness and self._spec.idle and group.is_free) or lease.refusal is not None:
                continue
            until_us = shorten_group(self._leases, lease, seconds=self._spec.idle, clock=self._clock)
            if until_us is None or not self._crew.keep_group(name, until_us=until_us):
                continue
            self._shelf.put(
                WarmGroup(
                    worker_group=name,
                    likeness=likeness,
                    sweep_id=self._book.sweep_id,
                    lease_id=lease.lease.lease_id,
                    fencing_token=lease.lease.fencing_token,
                    until_us=self._clock.now_us() + until_us - self._clock.monotonic_us(),
                )
            )
            del self._groups[name]

    def _makes_room(self, refusal: Refusal, *, now_us: int) -> bool:
        """Whether a warm group was ended, so that asking again is worth while; else the sweep waits, or gives up."""
        codes = {reason.code for reason in refusal.reasons}
        if DROPPED in codes:
            self._queued = ""
        elif codes <= PASSING and self._shelf.end_oldest(lambda name: bool(self._crew.end_left_over([name]))):
            self._say("ended a warm group of another shape to make room")
            return True
        elif codes <= PASSING:
            self._retry_us = now_us + round(POLL_SECONDS * SECOND_US)
            text = refusal.reasons[0].text
            if text != self._told_wait:
                self._say(f"waits for its turn: {text}")
            self._told_wait = text
        elif not self._is_spent(refusal):
            self._withdraw()
            self._refusal, self._retry_us = refusal, now_us + round(RETRY_SECONDS * SECOND_US)
        return False

    def _withdraw(self) -> None:
        if self._queued:
            self._leases.withdraw(self._queued)
            self._queued = ""

    def _expect_seconds(self) -> float:
        """How long a group would still run: its share of the open trials, each as long as the finished ones."""
        finished = [self._finished_us // self._finished] if self._finished else []
        trial_us = predict_trial(hint_us=None, finished_us=finished, ran_us=0)
        ahead = self._total - (len(self._trials) - len(self._open))
        return -(-ahead // self._spec.groups) * trial_us / SECOND_US

    def _retire(self) -> None:
        """Groups without a trial go when their lease ends, or when there was no work for too long."""
        now_us = self._clock.monotonic_us()
        has_work = any(trial.is_waiting for trial in self._open.values())
        for name, group in list(self._groups.items()):
            is_idle = not has_work and now_us - group.idle_since_us > self._spec.idle * SECOND_US
            is_over = group.is_leaving or group.lease.refusal is not None or is_idle
            if group.is_ready and group.trial is None and is_over:
                self._drop_group(name)

    def _assign(self) -> None:
        free = [name for name, group in self._groups.items() if group.is_free]
        waiting = [trial for trial in self._open.values() if trial.is_waiting]
        for name, trial in zip(free + self._list_ahead(), waiting, strict=False):
            self._begin(trial, name)

    def _list_ahead(self) -> list[str]:
        """Groups that may have one more trial although theirs runs: the one that will end first comes first."""
        are_short = self._finished and self._finished_us < self._finished * AHEAD_SECONDS * SECOND_US
        if not self._crew.runs_ahead or not are_short or len(self._groups) < self._spec.groups:
            return []
        last = self._spec.recycle_trials - 1
        able = [it for it in self._groups.items() if it[1].takes_following and it[1].trials_done < last]
        return [name for name, group in sorted(able, key=lambda it: it[1].begun_us)]

    def _begin(self, trial: OpenTrial, name: str) -> None:
        group = self._groups[name]
        trial.attempt, trial.is_waiting = trial.attempt + 1, False
        if group.trial is None:
            group.trial, group.heard_us = trial.number, self._clock.monotonic_us()
            group.begun_us = group.heard_us
        else:
            group.following = trial.number
        self._book.begin_attempt(trial.number, attempt=trial.attempt, group=name, lease=group.lease)
        folder = self._book.trial_folder(self._task.checkpoints, trial.number)
        task = self._task.make_attempt(trial, spec=self._spec, sweep_id=self._book.sweep_id, folder=folder)
        self._after.append(lambda: self._crew.begin(name, task))

    def _renew(self) -> None:
        for name, group in self._groups.items():
            if renew_if_due(self._leases, group.lease, spec=self._spec, clock=self._clock):
                self._crew.extend(name, until_us=group.lease.until_us)
            if group.lease.refusal is not None and not self._is_spent(group.lease.refusal):
                self._refusal = group.lease.refusal
                left_us = max(0, group.lease.until_us - self._clock.monotonic_us())
                self._checkpoint_and_yield(name, seconds=left_us / SECOND_US)

    def _hear_orders(self) -> None:
        """Groups whose place others need more give it up by the same way."""
        for name, group in self._groups.items():
            order = group.lease.order or self._leases.find_order(group.lease.lease.lease_id)
            if order is not None and group.lease.order is None:
                self._say(f"{name} makes room: {order.reason.text}")
                group.lease.order = order
                group.is_leaving = group.is_preempted = True
                left_us = max(0, order.leaves_by_us - self._clock.now_us())
                self._checkpoint_and_yield(name, seconds=left_us / SECOND_US)

    def _checkpoint_and_yield(self, name: str, *, seconds: float) -> None:
        """The one way in which a trial gives up its machines: node drain, priority, refused renewal, a wish to stop.

        It ends in a committed checkpoint and `Ended("yielded")`; or, when that does not come in time, in a kill.
        """
        group = self._groups[name]
        if group.trial is not None and group.yield_by_us is None:
            group.yield_by_us = self._clock.monotonic_us() + round(seconds * SECOND_US)
            self._crew.ask_yield(name)

    def _end_silent_groups(self) -> None:
        now_us = self._clock.monotonic_us()
        for name, group in list(self._groups.items()):
            if group.trial is not None and now_us - group.heard_us > self._spec.silence * SECOND_US:
                self._take(Gone(name, f"no progress for {self._spec.silence:g} s"))
            elif group.trial is not None and group.yield_by_us is not None and now_us > group.yield_by_us:
                self._take(Gone(name, "its trial did not yield before the deadline", is_preemption=True))

    def _drop_group(self, name: str) -> None:
        """End the workers first, then the lease: what was used is what is charged."""
        group = self._groups.pop(name)
        if group.lease.refusal is None:
            self._refusal = None  # what it held is free again: ask anew
        self._crew.stop_group(name)
        ended_us = self._book.end_lease(group.lease.lease.lease_id)
        settle_group(
            self._leases, group.lease.lease.lease_id, fencing_token=group.lease.lease.fencing_token, ended_us=ended_us
        )
        if group.lease.order is None:
            return
        if self._queued:
            self._leases.withdraw(group.key)
        else:
            self._queued = group.key  # it keeps its place in the queue

    # ---- events

    def _take_all(self, events: list[Event]) -> None:
        """What was heard together is recorded together, with what follows; losses touch leases and come last."""
        losses = [event for event in events if isinstance(event, Gone)]
        for loss in losses:
            if loss.group in self._groups:
                self._groups[loss.group].is_leaving = self._groups[loss.group].is_lost = True
        if len(events) > len(losses):
            with self._committed():
                for event in events:
                    if not isinstance(event, Gone):
                        self._take(event)
                self._assign()  # trials that were asked ahead start first, the sampler thinks meanwhile
                if not self._after or any(group.is_free for group in self._groups.values()):
                    self._propose()
                    self._assign()
        for loss in losses:
            self._take(loss)

    def _take(self, event: Event) -> None:
        group = self._groups.get(event.group)
        if group is None:
            return  # a group that was given up
        group.heard_us = self._clock.monotonic_us()
        if isinstance(event, Ready):
            group.is_ready, group.idle_since_us = True, group.heard_us
            self._crew.extend(event.group, until_us=group.lease.until_us)
            self._say(f"{event.group}: ready on {event.device} after {event.start_us / SECOND_US:.1f} s")
        elif isinstance(event, Reported):
            self._take_report(event, group)
        elif isinstance(event, Ended):
            self._take_end(event, group)
        elif isinstance(event, Progressed):
            self._progress[event.trial] = event
        elif isinstance(event, Notice):
            self._say(f"{event.group}: {event.reason}, {event.seconds:.0f} s left")
            group.is_leaving = group.is_preempted = True
            seconds = min(event.seconds, self._spec.yield_deadline)
            self._after.append(lambda: self._checkpoint_and_yield(event.group, seconds=seconds))
        elif isinstance(event, Gone):
            self._take_loss(event, group)

    def _take_report(self, report: Reported, group: HeldGroup) -> None:
        trial = self._trials[report.trial]
        is_last = report.epoch + 1 == self._spec.epochs
        if not self._book.add_report(report):
            if not is_last:
                self._after.append(lambda: self._crew.answer(report.group, Answer.PRUNE))
            return
        trial.metrics = dict(report.metrics)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in report.metrics.items())
        self._say(f"trial {report.trial} epoch {report.epoch + 1}/{self._spec.epochs}: {shown}")
        answer = self._answered.get((report.trial, report.epoch))
        if answer is None:  # a repeated epoch of a resumed attempt is answered as before
            value = report.metrics[self._spec.objectives[0].metric]
            is_pruned = self._search.observe(report.trial, epoch=report.epoch, value=value)
            answer = Answer.PRUNE if is_pruned else Answer.CONTINUE
            self._answered[report.trial, report.epoch] = answer
        if answer is Answer.CONTINUE and group.yield_by_us is not None:
            answer = Answer.YIELD
        given = answer
        if not is_last:
            self._after.append(lambda: self._crew.answer(report.group, given))

    def _take_end(self, ended: Ended, group: HeldGroup) -> None:
        trial, began_us, now_us = self._trials[ended.trial], group.begun_us, self._clock.monotonic_us()
        group.idle_since_us, group.trials_done = now_us, group.trials_done + 1
        self._follow(group, now_us=now_us)
        has_grown = ended.usage.growth_bytes > self._spec.recycle_mib << 20
        if has_grown or group.trials_done >= self._spec.recycle_trials:
            group.is_leaving = True
            grown = f"its memory has grown by {ended.usage.growth_bytes >> 20} MiB since its start"
            self._say(f"{ended.group} is replaced: {grown if has_grown else 'it has run long enough'}")
        self._lost_groups = 0
        states = {"complete": COMPLETE, "pruned": PRUNED, "failed": FAILED}
        final = states.get(ended.outcome)
        is_preemption = ended.outcome == "yielded" and group.is_preempted
        if ended.outcome == "lost" or is_preemption:
            final = self._count_loss(trial, is_preemption=is_preemption)
        if final is None and self._leaves_rest:
            self._close_trial(trial, state=_YIELDED)
        if not self._book.end_attempt(ended, final_state=final):
            return
        if final == COMPLETE:
            self._finished += 1
            self._finished_us += now_us - began_us
        if final is not None:
            self._close_trial(trial, state=final)
            self._say(f"trial {trial.number} {ended.outcome}" + (f": {ended.reason}" if ended.reason else ""))
        else:
            trial.is_waiting = trial.state == RUNNING

    def _follow(self, group: HeldGroup, *, now_us: int) -> None:
        """The workers have begun the trial that follows, if there is one and they live."""
        group.trial = None
        if group.following is None or group.is_lost:
            group.yield_by_us = None
            return
        group.trial, group.following, group.begun_us = group.following, None, now_us
        self._book.move_start(group.trial, attempt=self._trials[group.trial].attempt)

    def _take_back(self, group: HeldGroup, name: str) -> None:
        """The trial that was to follow never began; it is not its fault."""
        if group.following is not None:
            trial, group.following = self._trials[group.following], None
            lost = Ended(name, trial.number, trial.attempt, "lost", Usage(0, 0), reason="its group was lost before it")
            self._book.end_attempt(lost, final_state=None)
            trial.is_waiting = True

    def _take_loss(self, gone: Gone, group: HeldGroup) -> None:
        self._say(f"{gone.group} is gone: {gone.reason}")
        number = group.trial
        self._take_back(group, gone.group)
        self._drop_group(gone.group)
        if number is None and group.is_ready:
            return  # given up between trials: the next one starts without delay
        if number is None and self._shrink():
            return
        self._lost_groups += 1
        self._retry_us = self._clock.monotonic_us() + round(min(60.0, 0.5 * 2 ** min(self._lost_groups, 7)) * SECOND_US)
        if number is None:
            if self._lost_groups > self._spec.max_failures or gone.is_hopeless:
                self._refusal = Refusal((Reason("no-place", f"no worker group could be placed: {gone.reason}"),))
            return
        trial = self._trials[number]
        final = self._count_loss(trial, is_preemption=gone.is_preemption)
        lost = Ended(gone.group, number, trial.attempt, "lost", Usage(0, 0), reason=gone.reason)
        self._book.end_attempt(lost, final_state=final)
        trial.is_waiting = True
        if final is not None:
            self._close_trial(trial, state=final)
        what = "goes on from its last checkpoint" if final is None else f"failed: {gone.reason}, once too often"
        self._say(f"trial {number} {what}")

    def _count_loss(self, trial: OpenTrial, *, is_preemption: bool) -> str | None:
        """FAILED when the trial was lost more often than allowed; what was taken away is counted apart."""
        if is_preemption:
            trial.preemptions += 1
            return FAILED if trial.preemptions > self._spec.max_preemptions else None
        trial.failures += 1
        return FAILED if trial.failures > self._spec.max_failures else None

    def _beat(self) -> None:
        now_us = self._clock.monotonic_us()
        if now_us - self._beat_us < POLL_SECONDS * SECOND_US:
            return
        self._beat_us = now_us
        self._hear_orders()
        heard, self._progress = self._progress, {}
        wish = self._book.heartbeat(heard.values())
        deadline = self._spec.stop.deadline
        if wish == "stop":
            self._leave_rest(STOPPED_BY_REQUEST)
        elif deadline is not None and self._book.age_us() > deadline * SECOND_US and not self._stopping:
            self._stopping = f"the deadline of {deadline:g} s is over"

    def _is_spent(self, refusal: Refusal) -> bool:
        """Whether the sweep's own `stop.spend` says no, and trials are complete to choose among: it ends with those."""
        is_own = any(reason.code == OWN_LIMIT for reason in refusal.reasons)
        if not is_own or all(trial.state != COMPLETE for trial in self._trials.values()):
            return False
        self._leave_rest(self._stopping or f"the spend of {render_money(self._spec.stop.spend or 0)} is reached")
        return True

    def _leave_rest(self, why: str) -> None:
        """Trials that run are asked to yield at their next step; those that wait are left."""
        self._stopping, self._leaves_rest = why, True
        for trial in list(self._open.values()):
            if trial.is_waiting:
                self._close_trial(trial, state=_YIELDED)
        for name in self._groups:
            self._checkpoint_and_yield(name, seconds=self._spec.yield_deadline)

    def _drop_rest(self) -> None:
        """A sweep that ends with a winner leaves no trial open."""
        left = {number for number, row in self._past.items() if row.state == RUNNING} - set(self._trials)
        left |= {number for number, trial in self._trials.items() if trial.state == _YIELDED}
        for number in sorted(left):
            self._book.drop_trial(number, reason=self._stopping)
