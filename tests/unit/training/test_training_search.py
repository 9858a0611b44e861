"""Proposals: seeded, blind beyond the lag, and the same after a replay."""

import logging

import pytest

from mlops.training.optuna_search import Result, Search, count_trials
from mlops.training.sql_trials import TrialRow

SPACE = {"a": {"low": 0.1, "high": 1.0, "step": 0.3}, "b": {"kind": "int", "low": 1, "high": 4}}


def run_search(spec, *, trials=12, score=lambda params, number: params["a"] * params["b"]):
    """Propose, observe three epochs, tell as late as the lag allows."""
    search, proposals, pruned = Search(spec), [], []

    def tell():
        number = search.told
        metrics = {"loss": score(proposals[number], number), "gap": 0.0}
        search.tell(number, Result("PRUNED" if pruned[number] else "COMPLETE", metrics))

    for number in range(trials):
        while search.told <= number - spec.used_lag:
            tell()
        proposals.append(search.propose(number))
        values = [score(proposals[number], number) + 1 / (epoch + 1) for epoch in range(spec.epochs)]
        pruned.append(any(search.observe(number, epoch=epoch, value=value) for epoch, value in enumerate(values)))
    return proposals, pruned


@pytest.mark.parametrize("sampler", ["random", "grid", "tpe", "cmaes", "gp", "nsga2", "qmc"])
def test_one_seed_gives_the_same_proposals(stage, sampler):
    spec = stage.spec(sampler=sampler, space=SPACE, trials=12)
    first = run_search(spec)
    assert first == run_search(spec)
    if sampler != "grid":
        assert first != run_search(stage.spec(sampler=sampler, space=SPACE, trials=12, seed=5))


def test_a_small_sweep_is_not_all_random_and_says_nothing_of_what_is(stage):
    heard, listener = [], logging.Handler()
    listener.emit = heard.append
    logging.getLogger("optuna").addHandler(listener)
    space = {**SPACE, "kind": {"choices": ["x", "y"]}}
    found = {
        name: run_search(stage.spec(sampler=name, space=space, trials=9), trials=9)[0]
        for name in ("random", "tpe", "gp", "cmaes", "qmc")
    }
    logging.getLogger("optuna").removeHandler(listener)
    assert all(found[name][:3] == found["random"][:3] and found[name] != found["random"] for name in ("tpe", "gp"))
    assert heard == []


@pytest.mark.parametrize("pruner", ["median", "percentile", "successive_halving", "hyperband"])
def test_pruners_prune_the_same_trials_each_time_and_never_all(stage, pruner):
    spec = stage.spec(sampler="random", space=SPACE, trials=30, epochs=9, pruner={"name": pruner, "warmup_trials": 2})
    proposals, pruned = run_search(spec, trials=30)
    assert (proposals, pruned) == run_search(spec, trials=30)
    assert 0 < sum(pruned) < 30


def test_a_result_is_not_seen_before_its_lag(stage):
    """Changing the result of trial k changes no proposal up to k + lag - 1."""
    spec = stage.spec(sampler="tpe", space=SPACE, trials=24, lag=5, groups=3)
    base, _ = run_search(spec, trials=24)
    is_seen_later = False
    for changed in (8, 10, 12):
        other, _ = run_search(spec, trials=24, score=lambda p, n, k=changed: -100.0 if n == k else p["a"] * p["b"])
        assert other[: changed + 5] == base[: changed + 5]
        is_seen_later |= other != base
    assert is_seen_later


def test_a_grid_visits_each_point_once(stage):
    spec = stage.spec(sampler="grid", space=SPACE, trials=100)
    assert count_trials(spec) == 16
    proposals, _ = run_search(spec, trials=16)
    assert len({tuple(sorted(point.items())) for point in proposals}) == 16


def test_first_points_are_tried_first(stage):
    spec = stage.spec(space=SPACE, first=[{"a": 0.4, "b": 2}])
    assert run_search(spec, trials=2)[0][0] == {"a": 0.4, "b": 2}


def test_conditions_decide_which_parameters_a_trial_has(stage):
    space = {"kind": {"choices": ["x", "y"]}, "momentum": {"low": 0.0, "high": 1.0, "when": {"kind": "x"}}}
    spec = stage.spec(space=space, trials=20)
    proposals, _ = run_search(spec, trials=20, score=lambda params, number: params.get("momentum", 0.5))
    assert {tuple(sorted(point)) for point in proposals} == {("kind",), ("kind", "momentum")}
    assert all((point["kind"] == "x") == ("momentum" in point) for point in proposals)


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "gp", "nsga2", "qmc"])
def test_every_sampler_takes_a_conditional_space(stage, sampler):
    space = {
        "kind": {"choices": ["x", "y"]},
        "momentum": {"low": 0.0, "high": 1.0, "when": {"kind": "x"}},
        "rate": {"low": 0.001, "high": 1.0, "log": True},
    }
    spec = stage.spec(space=space, sampler=sampler, trials=14)
    proposals, _ = run_search(
        spec, trials=14, score=lambda params, number: params["rate"] + params.get("momentum", 0.5)
    )
    assert all((point["kind"] == "x") == ("momentum" in point) for point in proposals)
    assert {point["kind"] for point in proposals} == {"x", "y"}
    assert len({point["rate"] for point in proposals}) >= 5  # nsga2 hands values on


def test_several_objectives_are_traded_off(stage):
    """NSGA-II comes to the line between the best of either objective, and its choice of both is the same each time."""
    objectives = [{"metric": "loss"}, {"metric": "gap"}]
    space = {"a": {"low": 0.0, "high": 4.0}, "b": {"low": 0.0, "high": 4.0}}
    spec = stage.spec(objective=objectives, space=space, sampler="nsga2", trials=120, seed=3)

    def run():
        search, points = Search(spec), []
        for number in range(120):
            if number:
                a, b = points[-1]
                search.tell(number - 1, Result("COMPLETE", {"loss": a**2 + b, "gap": (a - 2) ** 2 + b}))
            params = search.propose(number)
            points.append((params["a"], params["b"]))
        return points

    points = run()
    assert points == run()
    first, last = points[:30], points[-30:]
    assert sum(b for _, b in last) < 0.7 * sum(b for _, b in first)  # b is bad for both


def row(number, params, loss, state="COMPLETE"):
    return TrialRow(number, state, params, 0, {"loss": loss}, "", "", "", "", 0, 1)


def test_a_warm_start_learns_from_the_trials_that_fit(stage):
    rows = [row(n, {"a": 0.1 + 0.3 * (n % 4), "b": 1 + n % 3}, loss=(n % 4) + 0.1 * n) for n in range(12)]
    strange = [row(20, {"a": 0.1}, 0.0), row(21, {"a": 7.0, "b": 1}, 0.0), row(22, {"a": 0.1, "b": 1}, float("nan"))]
    unfit = [row(23, {"a": 0.1, "b": 1}, 0.0, state="FAILED"), row(24, {"a": 0.1, "b": 1, "c": 2}, 0.0)]
    spec = stage.spec(space=SPACE, sampler="tpe", trials=12, fixed={"c": 1})
    search = Search(spec, earlier=[*rows, *strange, *unfit])
    assert search.known == 12
    warm = [search.propose(number) for number in range(3)]
    again = Search(spec, earlier=rows)
    assert warm == [again.propose(number) for number in range(3)]
    assert sum(point["a"] for point in warm) < 1.2  # small `a` was good: no start at random


def test_a_failed_trial_does_not_stop_the_search(stage):
    search = Search(stage.spec(sampler="tpe", space=SPACE))
    search.propose(0)
    search.tell(0, Result("FAILED", {}))
    assert search.propose(1)
