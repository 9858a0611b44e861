"""One round over one product: observe, plan one action, apply it, again, until all is as desired or something is unfit.

Leaves to others: the plan (reconcile_plan.py), what may run (admission.py), the rounds (reconciler.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlops.clock import SECOND_US
from mlops.deploy import traffic_switch
from mlops.deploy.admission import Admission, admit
from mlops.deploy.desired_state import DesiredState, ReleaseSet
from mlops.deploy.environment import SLOTS, EnvironmentSpec
from mlops.deploy.instance_check import GoldenSource, find_wrong_answer, wait_ready
from mlops.deploy.reconcile_plan import Action, Check, Clear, Drain, Failure, Shift, SlotView, Start, plan_next
from mlops.deploy.serving_lease import is_stop_asked, pay_serving, release_serving
from mlops.deploy.serving_record import count_losses, record_loss, record_serving
from mlops.deploy.site import Site
from mlops.deploy.slots import SlotTable
from mlops.deploy.state_keeper import Hook, load_desired_state
from mlops.deploy.withdrawal import roll_back, withdraw_version
from mlops.errors import EnvironmentFault, MlopsError, Refusal
from mlops.serving.runtime import Instance, RunRequest

_MOST_ACTIONS = 200
"""Far more than any way from one state to another takes; a plan that never ends is a bug."""


@dataclass(frozen=True)
class ProductOutcome:
    """How one product came out of a round."""

    product: str
    actions: tuple[str, ...]
    """What was done, one line each."""
    failure: str | None = None
    """Why a version was found unfit; the machine has gone back if it could."""
    refusal: Refusal | None = None
    """Why the desired version may not serve."""
    is_outdated: bool = False
    """The desired state changed meanwhile: another round is due."""


class ProductRound:
    """One round over one product."""

    def __init__(
        self,
        site: Site,
        rules: EnvironmentSpec,
        table: SlotTable,
        state: DesiredState,
        release: ReleaseSet,
        *,
        golden: GoldenSource,
        say: Callable[[str], None],
        hook: Hook,
        patience_seconds: float,
    ) -> None:
        self._site = site
        self._rules = rules
        self._table = table
        self._state = state
        self._release = release
        self._golden = golden
        self._say = say
        self._hook = hook
        self._patience_seconds = patience_seconds
        self._done: list[str] = []
        self._unstartable: set[str] = set()
        self._was_proxy_started = False

    def converge(self) -> ProductOutcome:
        """Until all is as desired, a version is unfit, or something may not run."""
        obstacle = self._finish_interrupted_rollback() or self._admit_desired() or self._pay()
        if obstacle is not None:
            return obstacle
        for _ in range(_MOST_ACTIONS):
            views, instances = self._observe()
            self._note_way_back(views)
            repeated = self._find_repeated_loss()
            if repeated is not None:
                return self._withdraw(repeated)
            action = plan_next(
                self._release,
                views,
                slots=SLOTS,
                steps=self._rules.traffic.steps,
                keep_warm=self._rules.rollback.keep_warm,
                unstartable=frozenset(self._unstartable),
            )
            if action is None:
                self._record(views)
                return ProductOutcome(self._release.product, tuple(self._done))
            self._hook(f"before-{type(action).__name__.lower()}")
            outcome = self._apply(action, views, instances)
            if isinstance(outcome, Failure):
                return self._withdraw(outcome)
            if outcome is not None:
                return outcome
        raise AssertionError(f"the plan for {self._release.product} does not end: {self._done[-5:]}")

    def _admit_desired(self) -> ProductOutcome | None:
        """Everything that is to get traffic is admitted before anything is touched."""
        for version in self._release.versions:
            admitted = self._admit(version.image, are_bytes_checked=False)
            if isinstance(admitted, Refusal):
                if all(reason.code == "barred" for reason in admitted.reasons):
                    return self._go_back(leave=version.image, why=admitted.reasons[0].text)
                return ProductOutcome(self._release.product, tuple(self._done), refusal=admitted)
        return None

    def _pay(self) -> ProductOutcome | None:
        """An exhausted budget starts nothing; what runs is stopped only by a budget that says so."""
        unpaid = pay_serving(self._site, self._rules, self._release.product)
        if unpaid is None:
            return None
        instances = self._table.load_instances()
        if instances and not is_stop_asked(self._site, self._rules):
            self._tell(f"serves unpaid: {unpaid.reasons[0].text}")
            return None
        for slot, instance in instances.items():
            self._tell(f"slot {slot}: stopped, its budget is exhausted and says `serving: stop`")
            self._stop(slot, instance)
        release_serving(self._site, self._rules, self._release.product)
        return ProductOutcome(self._release.product, tuple(self._done), refusal=unpaid)

    def _admit(self, image: str, *, are_bytes_checked: bool) -> Admission | Refusal:
        keyring = self._site.load_keyring()
        with self._site.ledger.read() as connection:
            return admit(
                connection,
                image,
                environment=self._rules.name,
                places=self._site.places,
                keyring=keyring,
                are_bytes_checked=are_bytes_checked,
            )

    def _observe(self) -> tuple[tuple[SlotView, ...], dict[int, Instance]]:
        tolerated = self._rules.health.failures
        instances = self._table.load_instances()
        self._was_proxy_started |= self._table.proxy.ensure_running({})
        views = self._table.observe(instances, tolerated_failures=tolerated)
        while self._table.is_any_failing(tolerated_failures=tolerated):
            self._site.clock.sleep(self._rules.health.interval)
            views = self._table.observe(instances, tolerated_failures=tolerated)
        return views, instances

    def _apply(
        self, action: Action, views: tuple[SlotView, ...], instances: dict[int, Instance]
    ) -> Failure | ProductOutcome | None:
        if isinstance(action, Start):
            return self._start(action)
        if isinstance(action, Check):
            return self._check(action, instances[action.slot])
        if isinstance(action, Shift | Drain):
            with traffic_switch.locked(self._table.folder):
                if self._is_outdated():
                    return ProductOutcome(self._release.product, tuple(self._done), is_outdated=True)
                self._set_weights(action.weights if isinstance(action, Shift) else {action.slot: 0})
            if isinstance(action, Shift):
                self._end_shift(action)
            else:
                self._drain(action, instances[action.slot])
        else:
            self._clear(action, views)
        return None

    def _clear(self, action: Clear, views: tuple[SlotView, ...]) -> None:
        view = next(view for view in views if view.slot == action.slot)
        self._table.forget(action.slot)
        if self._release.find_image(view.image) is not None and not self._was_proxy_started:
            record_loss(self._site, self._rules.name, view.image, why="its process ended")
        self._tell(f"slot {action.slot}: the instance is gone")

    def _start(self, action: Start) -> Failure | ProductOutcome | None:
        version = action.version
        admitted = self._admit(version.image, are_bytes_checked=True)
        if isinstance(admitted, Refusal):
            if action.is_warm_only:
                self._unstartable.add(version.image)
                self._tell(f"version {version.number} is not kept warm: {admitted.reasons[0].text}")
                return None
            return ProductOutcome(self._release.product, tuple(self._done), refusal=admitted)
        if action.is_replacement:
            record_loss(self._site, self._rules.name, version.image, why="it failed its health check")
            if self._find_repeated_loss() is not None:
                return None  # the next look at the ledger withdraws it
        self._tell(f"slot {action.slot}: starting version {version.number} with {self._table.runtime.name}")
        resources = self._rules.resources
        try:
            self._table.runtime.start(
                RunRequest(
                    name=self._table.instance_name(action.slot),
                    layout=self._site.places.images,
                    digest=version.image,
                    socket_folder=traffic_switch.slot_folder(self._table.folder, action.slot),
                    memory_bytes=resources.memory,
                    pids=resources.pids,
                    cpus=resources.cpus,
                )
            )
        except EnvironmentFault:
            raise
        except MlopsError as error:
            return self._judge_failure(Failure(version, "start", error.message), is_warm_only=action.is_warm_only)
        return None

    def _check(self, action: Check, instance: Instance) -> Failure | None:
        version = action.version
        why = wait_ready(
            instance.socket,
            timeout_seconds=self._rules.health.start_within,
            is_alive=lambda: self._table.runtime.is_running(instance),
        )
        if why is None and self._rules.health.golden_requests:
            try:
                why = find_wrong_answer(instance.socket, self._golden(self._release.product, version))
            except MlopsError as error:
                why = error.message
        if why is None:
            self._table.note_checked(action.slot, instance)
            self._tell(f"slot {action.slot}: version {version.number} is ready and answers as the judged model")
            return None
        logs = self._table.runtime.logs(instance).strip()[-1_000:]
        self._stop(action.slot, instance)
        text = f"version {version.number} {why}" + (f"; it said: {logs}" if "died" in why and logs else "")
        return self._judge_failure(Failure(version, "check", text), is_warm_only=action.is_warm_only)

    def _judge_failure(self, failure: Failure, *, is_warm_only: bool) -> Failure | None:
        if not is_warm_only:
            return failure
        self._unstartable.add(failure.version.image)
        self._tell(f"version {failure.version.number} is not kept warm: {failure.why}")
        return None

    def _is_outdated(self) -> bool:
        """Whether a rollback moved traffic, or another state was decided, since this round began."""
        if traffic_switch.read_hold(self._table.folder) is not None:
            return True
        return load_desired_state(self._site, self._rules.name).digest != self._state.digest

    def _set_weights(self, weights: Mapping[int, int]) -> None:
        way = traffic_switch.read_way_back(self._table.folder)
        if way is not None and set(weights) == {way["slot"]}:
            traffic_switch.write_way_back(self._table.folder, None)  # it is about to be drained
        try:
            traffic_switch.set_weights(self._table.folder, weights)
        except (OSError, ValueError) as error:
            raise EnvironmentFault(
                f"the proxy of {self._release.product} did not take new shares: {error}",
                hint="run `mlops deploy reconcile` again",
            ) from error

    def _end_shift(self, action: Shift) -> None:
        shares = ", ".join(f"slot {slot} {share} %" for slot, share in sorted(action.weights.items()))
        self._tell(f"traffic: {shares}")
        if not action.is_last:
            self._site.clock.sleep(self._rules.traffic.step_wait)

    def _drain(self, action: Drain, instance: Instance) -> None:
        is_drained = self._table.proxy.wait_drained(action.slot, timeout_seconds=self._rules.traffic.drain)
        self._stop(action.slot, instance)
        self._tell(f"slot {action.slot}: {'drained' if is_drained else 'cut off after the drain time'} and stopped")

    def _stop(self, slot: int, instance: Instance) -> None:
        self._table.runtime.stop(instance, timeout_seconds=self._rules.traffic.drain)
        self._table.forget(slot)

    def _find_repeated_loss(self) -> Failure | None:
        limit = self._rules.rollback.after_replacements
        since_us = self._site.clock.now_us() - round(self._rules.rollback.window * SECOND_US)
        for version in self._release.versions:
            losses = count_losses(self._site, self._rules.name, version.image, since_us=since_us)
            if losses >= limit and self._release.last_known_good is not None:
                text = f"version {version.number} was lost {losses} times within {self._rules.rollback.window:g} s"
                return Failure(version, "health", text)
        return None

    def _withdraw(self, failure: Failure) -> ProductOutcome:
        self._tell(f"unfit: {failure.why}")
        withdrawn = withdraw_version(self._site, self._rules, self._release.product, failure, hook=self._hook)
        self._tell(withdrawn)
        state = load_desired_state(self._site, self._rules.name)
        is_outdated = state.digest != self._state.digest
        return ProductOutcome(self._release.product, tuple(self._done), failure=failure.why, is_outdated=is_outdated)

    def _finish_interrupted_rollback(self) -> ProductOutcome | None:
        """A rollback that was killed after it moved traffic is carried through; a finished one frees the switch."""
        while (age := traffic_switch.hold_age_seconds(self._table.folder)) is not None and age < self._patience_seconds:
            self._site.clock.sleep(0.1)  # whoever moved the traffic is about to write it down
        held = traffic_switch.read_hold(self._table.folder)
        if held is None:
            return None
        with self._site.deciding(self._rules.name):  # wait for a rollback that is still at work
            current = load_desired_state(self._site, self._rules.name).find_product(self._release.product)
        if current is None or current.versions[0].image == held:
            traffic_switch.release_hold(self._table.folder)
            return ProductOutcome(self._release.product, tuple(self._done), is_outdated=True)
        return self._go_back(leave=current.versions[0].image, why="an interrupted rollback was carried through")

    def _go_back(self, *, leave: str, why: str) -> ProductOutcome:
        """What a person or an earlier run began is carried through, whatever the rules say about doing it unasked."""
        target = roll_back(self._site, self._rules, self._release.product, leave=leave, why=why, hook=self._hook)
        if isinstance(target, Refusal):
            traffic_switch.release_hold(self._table.folder)
            return ProductOutcome(self._release.product, tuple(self._done), refusal=target)
        self._tell(f"went back to version {target.versions[0].number}: {why}")
        return ProductOutcome(self._release.product, tuple(self._done), is_outdated=True)

    def _note_way_back(self, views: tuple[SlotView, ...]) -> None:
        good = self._release.last_known_good
        way = None
        if good is not None:
            warm = next((view for view in views if view.image == good.image and view.is_fit), None)
            if warm is not None:
                leave = [view.slot for view in views if view.slot != warm.slot]
                way = {
                    "image": good.image,
                    "number": good.number,
                    "slot": warm.slot,
                    "leave": leave,
                    "from_image": self._release.versions[0].image,
                    "from_number": self._release.versions[0].number,
                }
        if way != traffic_switch.read_way_back(self._table.folder):
            traffic_switch.write_way_back(self._table.folder, way)

    def _record(self, views: tuple[SlotView, ...]) -> None:
        served = {view.image: view.weight for view in views if view.weight > 0}
        versions = [version for version in self._release.versions if version.image in served]
        changed = record_serving(self._site, self._rules.name, self._release.product, versions)
        for line in changed:
            self._tell(line)

    def _tell(self, line: str) -> None:
        self._done.append(line)
        self._say(f"{self._rules.name} {self._release.product}: {line}")
