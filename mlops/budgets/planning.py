"""A forecast against the ledger: price, history and what is left, for `--dry-run` and `mlops budget forecast`."""

from __future__ import annotations

import sqlalchemy as sa

from mlops.budgets.accounts import list_scopes, load_accounts
from mlops.budgets.configuration import load_applied
from mlops.budgets.forecast import Forecast, Holding, SweepPlan, check_holding, forecast_sweep
from mlops.budgets.money import price_per_hour, to_milli
from mlops.budgets.overview import load_finished_seconds
from mlops.errors import ProjectError
from mlops.units import Accelerators


def forecast_for(
    connection: sa.Connection,
    *,
    budget: str,
    trials: int,
    at_once: int,
    accelerators: Accelerators,
    hint_seconds: float | None,
    history_prefix: str = "",
    finished_seconds: tuple[float, ...] = (),
    now_us: int,
) -> tuple[Forecast, tuple[Holding, ...]]:
    """P50/P90 of a sweep, and which budgets on the way up hold it.

    Raises:
        ProjectError: Unknown budget or accelerator kind, or nothing to forecast from.
    """
    tree = load_applied(connection)
    path = tree.path(budget)
    if not path:
        raise ProjectError(f"there is no budget {budget!r}", hint=f"known budgets: {', '.join(tree.by_name)}")
    rate = tree.rates.find_price(accelerators.kind, at_us=now_us)
    if rate is None:
        priced = sorted(kind for kind in tree.rates.kinds if tree.rates.find_price(kind, at_us=now_us) is not None)
        later = " today, only from a later day on" if accelerators.kind in tree.rates.kinds else ""
        known = f"kinds with a price now: {', '.join(priced) or 'none'}"
        raise ProjectError(f"{accelerators.kind} has no price in rates.yaml{later}", hint=known)
    history = finished_seconds
    if not history and history_prefix:
        history = load_finished_seconds(connection, sweep_prefix=history_prefix)
    plan = SweepPlan(
        trials=trials,
        at_once=at_once,
        price_micro_usd_per_hour=price_per_hour(rate, milli=to_milli(accelerators.count)),
        finished_seconds=history,
        hint_seconds=hint_seconds,
    )
    forecast = forecast_sweep(plan)
    if forecast is None:
        raise ProjectError("there is nothing to forecast from", hint="give --hint, or --history with ended sweeps")
    loaded = load_accounts(connection, list_scopes(path, (), now_us=now_us))
    return forecast, check_holding(forecast, loaded)
