"""What a sweep will cost and when it ends, before it starts; and when a budget runs out while it runs.

P50 and P90 by resampling the trials that finished, or by a spread around the hint. Seeded: the same question gets the
same answer. Leaves to others: the cap itself (`accounts`): a forecast promises nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from mlops.budgets.accounts import Account
from mlops.budgets.money import cost_of
from mlops.budgets.tree import find_period_end
from mlops.clock import SECOND_US

DRAWS = 400
HINT_SPREAD = 0.5
"""Lognormal sigma around a hint: half of all guesses are off by more than 40 %."""


@dataclass(frozen=True)
class SweepPlan:
    """What is known of a sweep before it starts, or of the rest of one that runs."""

    trials: int
    """Still to come."""
    at_once: int
    price_micro_usd_per_hour: int
    """Of one trial's worker group."""
    finished_seconds: tuple[float, ...] = ()
    """Of this sweep or earlier ones of the product."""
    hint_seconds: float | None = None


@dataclass(frozen=True)
class Forecast:
    """Cost in micro-USD, time in seconds from now."""

    cost_p50: int
    cost_p90: int
    seconds_p50: float
    seconds_p90: float
    basis: str
    """What it rests on, for people."""


def forecast_sweep(plan: SweepPlan, *, seed: int = 0) -> Forecast | None:
    """P50 and P90 of cost and time; None when there is neither history nor a hint."""
    if not plan.finished_seconds and plan.hint_seconds is None:
        return None
    generator = random.Random(seed)  # noqa: S311 - resampling, not a secret
    draws = sorted(_draw(plan, generator) for _ in range(DRAWS))
    ends = sorted(seconds for _, seconds in draws)
    half, most = int(DRAWS * 0.5), int(DRAWS * 0.9)
    count = len(plan.finished_seconds)
    basis = f"{count} finished trials" if count else f"a hint of {plan.hint_seconds:g} s per trial"
    return Forecast(draws[half][0], draws[most][0], ends[half], ends[most], basis)


def _draw(plan: SweepPlan, generator: random.Random) -> tuple[int, float]:
    """One possible course: its cost, and its end with trials started as soon as a place is free."""
    places = [0.0] * max(min(plan.at_once, plan.trials), 1)
    total = 0.0
    # The level itself is uncertain, too: few finished trials say little about the mean of those to come.
    level = math.exp(generator.gauss(0.0, HINT_SPREAD / math.sqrt(len(plan.finished_seconds) + 1)))
    for _ in range(plan.trials):
        if plan.finished_seconds:
            seconds = generator.choice(plan.finished_seconds) * level
        else:
            seconds = (plan.hint_seconds or 0.0) * level * math.exp(generator.gauss(0.0, HINT_SPREAD / 2))
        first = places.index(min(places))
        places[first] += seconds
        total += seconds
    return cost_of(plan.price_micro_usd_per_hour, duration_us=round(total * SECOND_US)), max(places)


@dataclass(frozen=True)
class Holding:
    """Whether a budget holds a forecast."""

    scope: str
    left_micro_usd: int
    holds_p50: bool
    holds_p90: bool


def check_holding(forecast: Forecast, loaded: Sequence[Account]) -> tuple[Holding, ...]:
    """Every capped scope, and whether what is left pays for P50 and P90."""
    return tuple(
        Holding(account.scope, left, forecast.cost_p50 <= left, forecast.cost_p90 <= left)
        for account in loaded
        if (left := account.left_micro_usd) is not None
    )


def find_exhaustion(account: Account, *, burn_micro_usd_per_hour: int, now_us: int) -> int | None:
    """When a budget runs out at the present burn; None when the period ends first, or nothing burns."""
    left = account.left_micro_usd
    if left is None or burn_micro_usd_per_hour <= 0:
        return None
    # Reserved money is going to be used, so what burns eats `left` plus what is prepaid.
    seconds = max(left + account.reserved_micro_usd, 0) * 3_600 / burn_micro_usd_per_hour
    at_us = now_us + round(seconds * SECOND_US)
    end_us = find_period_end(account.period, at_us=now_us)
    return None if end_us is not None and at_us >= end_us else at_us
