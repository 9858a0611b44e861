"""What to do next so that a machine serves the desired release set: pure, from what is observed to one action.

The reconciler observes, asks for the next action, applies it and observes again, so that it can be killed anywhere.
Leaves to others: acting (reconciler.py), and what to do when an action fails (going_back.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mlops.deploy.desired_state import ReleaseSet, ServedVersion


@dataclass(frozen=True)
class SlotView:
    """One occupied slot as observed."""

    slot: int
    image: str
    is_alive: bool
    """Its process runs."""
    is_checked: bool
    """It was ready and answered the golden requests since it started."""
    is_healthy: bool
    """It has not failed its health check too often in a row."""
    weight: int
    """Percent of the traffic at the proxy."""
    is_attached: bool
    """The proxy knows that somebody is there."""

    @property
    def is_fit(self) -> bool:
        """Whether it may get traffic."""
        return self.is_alive and self.is_checked and self.is_healthy


@dataclass(frozen=True)
class Clear:
    """A slot whose process is gone: take it out of the proxy and forget it."""

    slot: int


@dataclass(frozen=True)
class Start:
    """Start a version in a free slot."""

    slot: int
    version: ServedVersion
    is_replacement: bool
    """An instance of this version was there and became unfit."""
    is_warm_only: bool
    """It gets no traffic: the last known good, ready to go back to."""


@dataclass(frozen=True)
class Check:
    """Wait until it is ready, then compare golden answers."""

    slot: int
    version: ServedVersion
    is_warm_only: bool


@dataclass(frozen=True)
class Shift:
    """Give slots their share of the traffic."""

    weights: Mapping[int, int]
    is_last: bool
    """The desired shares are reached."""


@dataclass(frozen=True)
class Drain:
    """Let a slot finish what is under way, then stop it."""

    slot: int


Action = Clear | Start | Check | Shift | Drain


def plan_next(
    release: ReleaseSet,
    observed: Sequence[SlotView],
    *,
    slots: int,
    steps: Sequence[int],
    keep_warm: bool,
    unstartable: frozenset[str] = frozenset(),
) -> Action | None:
    """The next action; None when all is as desired.

    Args:
        release: What should serve.
        observed: Occupied slots.
        slots: How many there are.
        steps: Percentages in which traffic moves; ends with 100.
        keep_warm: Keep the last known good running.
        unstartable: Images of warm versions that could not be started; serving does not depend on them.
    """
    for view in observed:
        if not view.is_alive:
            return Clear(view.slot)
    good = release.last_known_good
    chosen = {version.image: _choose(version.image, observed) for version in release.versions}
    for version in release.versions:
        if chosen[version.image] is None:
            return _provide(version, observed, slots=slots, release=release, is_warm_only=False)
    target: dict[int, int] = {}
    for version in release.versions:
        provider = chosen[version.image]
        if provider is not None:
            target[provider.slot] = version.share
    shift = _plan_shift(target, observed, steps=steps)
    if shift is not None:
        return shift
    kept = set(target)
    if keep_warm and good is not None and good.image not in chosen and good.image not in unstartable:
        warm = _choose(good.image, observed)
        if warm is None:
            return _provide(good, observed, slots=slots, release=release, is_warm_only=True)
        kept.add(warm.slot)
    for view in observed:
        if view.slot not in kept:
            return Drain(view.slot)
    return None


def _choose(image: str, observed: Sequence[SlotView]) -> SlotView | None:
    """The fit instance of an image that serves most already."""
    fit = [view for view in observed if view.image == image and view.is_fit]
    return max(fit, key=lambda view: (view.weight, -view.slot), default=None)


def _provide(
    version: ServedVersion, observed: Sequence[SlotView], *, slots: int, release: ReleaseSet, is_warm_only: bool
) -> Action:
    """Check what was started, else start it; make room first when every slot is taken."""
    same = [view for view in observed if view.image == version.image]
    for view in same:
        if view.is_healthy and not view.is_checked:
            return Check(view.slot, version, is_warm_only)
    free = [slot for slot in range(slots) if slot not in {view.slot for view in observed}]
    if free:
        return Start(free[0], version, is_replacement=bool(same), is_warm_only=is_warm_only)
    wanted = {entry.image for entry in release.versions}
    idle = sorted(observed, key=lambda view: (view.weight, view.image in wanted, view.slot))
    return Drain(idle[0].slot)


def _plan_shift(target: Mapping[int, int], observed: Sequence[SlotView], *, steps: Sequence[int]) -> Shift | None:
    """The next step of traffic towards `target`; all at once when nobody healthy serves now."""
    current = {view.slot: view.weight for view in observed}
    everything = {slot: target.get(slot, 0) for slot in current}
    is_attached = all(view.is_attached for view in observed if view.slot in target)
    if current == everything and is_attached:
        return None
    serving = {view.slot for view in observed if view.weight > 0}
    losing = {view.slot for view in observed if view.weight > target.get(view.slot, 0)}
    unfit = {view.slot for view in observed if not view.is_fit}
    if not serving or not losing or losing & unfit or sum(current.values()) != 100:
        return Shift(everything, is_last=True)
    reached = sum(min(current[slot], share) for slot, share in target.items())
    step = next(step for step in (*steps, 100) if step > reached or step == 100)
    if step == 100:
        return Shift(everything, is_last=True)
    weights = {slot: max(min(current[slot], share), round(share * step / 100)) for slot, share in target.items()}
    rest = 100 - sum(weights.values())
    total = sum(current[slot] - min(current[slot], target.get(slot, 0)) for slot in losing)
    for slot in sorted(losing):
        surplus = current[slot] - min(current[slot], target.get(slot, 0))
        part = round(rest * surplus / total) if total else 0
        weights[slot] = weights.get(slot, 0) + part
    return Shift({**dict.fromkeys(current, 0), **weights}, is_last=False)


FailureKind = Literal["start", "check", "health"]


@dataclass(frozen=True)
class Failure:
    """A version that is not fit to serve here."""

    version: ServedVersion
    kind: FailureKind
    why: str
