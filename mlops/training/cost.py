"""What a sweep is going to cost and how long it takes, by what its product's trials took before.

Leaves to others: the forecast itself (mlops/budgets), showing it.
"""

from __future__ import annotations

from mlops.budgets.opening import open_lease_book
from mlops.budgets.planning import forecast_for
from mlops.clock import Clock
from mlops.errors import MlopsError
from mlops.ids import Ids
from mlops.ledger.connection import Ledger
from mlops.places import Places
from mlops.training.spec import SweepSpec
from mlops.training.sql_trials import load_trial_seconds
from mlops.units import Accelerators, render_money


def describe_cost(
    places: Places, ledger: Ledger, spec: SweepSpec, *, clock: Clock, ids: Ids, hint_seconds: float | None = None
) -> str:
    """P50 and P90 of cost and time in one line, and whether the budgets hold it; or why there is no forecast.

    Args:
        places: The project.
        ledger: Has budgets, and the trials that ended.
        spec: What would run.
        clock: Time.
        ids: For the lease book.
        hint_seconds: Expected time of one trial, used while none has ended.
    """
    open_lease_book(places, ledger, clock, ids)  # budget files as they are now
    with ledger.read() as connection:
        try:
            forecast, holdings = forecast_for(
                connection,
                budget=spec.budget,
                trials=spec.trials,
                at_once=spec.groups,
                accelerators=Accelerators(spec.accelerators.kind, spec.accelerators.count * spec.workers),
                hint_seconds=hint_seconds,
                finished_seconds=load_trial_seconds(connection, spec.product),
                now_us=clock.now_us(),
            )
        except MlopsError as error:
            return f"no forecast: {error.message}"
    short = [each.scope.removeprefix("budget:") for each in holdings if not each.holds_p90]
    held = f"; more than is left in {', '.join(short)}" if short else "; the budgets hold it"
    cost = f"{render_money(forecast.cost_p50)} (P50) to {render_money(forecast.cost_p90)} (P90)"
    return f"{cost}, {forecast.seconds_p50 / 60:.1f} to {forecast.seconds_p90 / 60:.1f} min, by {forecast.basis}{held}"
