"""Small rules: money, quota, forecast, predictions, claims, traces, placement."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mlops.budgets.accounts import Account
from mlops.budgets.claims import check_spender, make_claim
from mlops.budgets.decide import decide
from mlops.budgets.forecast import SweepPlan, check_holding, find_exhaustion, forecast_sweep
from mlops.budgets.learned import Learned, find_gittins_time, spread_unfinished
from mlops.budgets.money import cost_of, price_per_hour
from mlops.budgets.placement import find_placement
from mlops.budgets.prediction import Exact, Noisy, grow, predict_trial
from mlops.budgets.quota import QuotaBoard
from mlops.budgets.simulate import make_cluster, simulate
from mlops.budgets.state import Group, Node, Refuse, Resize, Settings, Start, State, Wait
from mlops.budgets.trace import Job, read_trace
from mlops.budgets.tree import BudgetNode, BudgetTree, Quota, RateCard, Spender
from mlops.clock import SECOND_US
from mlops.errors import ProjectError


def test_charges_are_rounded_up_and_never_negative():
    assert price_per_hour(50_000, milli=500) == 25_000
    assert price_per_hour(1, milli=1) == 1
    assert cost_of(3_600, duration_us=1) == 1
    assert cost_of(3_600, duration_us=-5) == 0


def quota_tree() -> BudgetTree:
    return BudgetTree.of(
        [
            BudgetNode("root", quotas={"g": Quota(10)}),
            BudgetNode("a", parent="root", quotas={"g": Quota(4, borrow=4)}),
            BudgetNode("b", parent="root", quotas={"g": Quota(6, borrow=0, lend=2)}),
        ],
        rates=RateCard(()),
    )


def test_borrowing_stops_at_the_limit_and_at_what_siblings_keep():
    board = QuotaBoard(quota_tree())
    board.use("a", "g", 6)
    assert board.borrowed("a", "g") == 2
    assert board.find_lent("root", "g") == {"a": 0, "b": 2}
    limit = board.find_limit("a", "g", 1)
    assert limit is not None and limit.is_reserve_of_siblings
    assert board.find_limit("b", "g", 4) is None
    assert board.find_limit("b", "g", 5) is not None
    assert board.find_limit("a", "other", 99) is None, "a kind that nobody names is not limited"
    board.use("a", "g", -6)
    assert board.find_limit("a", "g", 6) is None


def test_a_quota_trial_leaves_no_trace():
    board = QuotaBoard(quota_tree())
    before = dict(board.used), dict(board._pool)
    for name, units in (("a", 5), ("b", 3), ("a", -5), ("b", -3)):
        board.use(name, "g", units)
    assert (board.used, board._pool) == before


def test_groups_take_the_fullest_node_that_fits_or_whole_nodes():
    nodes = {f"n{i}": Node(f"n{i}", "g", 8) for i in range(3)}
    assert find_placement(nodes, {"n0": 8, "n1": 3, "n2": 5}, list(nodes), 3) == (("n1", 3),)
    assert find_placement(nodes, {"n0": 8, "n1": 8, "n2": 5}, list(nodes), 16) == (("n0", 8), ("n1", 8))
    assert find_placement(nodes, {"n0": 8, "n1": 8, "n2": 5}, list(nodes), 20) == (("n0", 8), ("n1", 8), ("n2", 4))
    assert find_placement(nodes, {"n0": 8, "n1": 7, "n2": 7}, list(nodes), 16) is None


def test_a_forecast_orders_its_quantiles_and_grows_with_work():
    few = forecast_sweep(SweepPlan(10, 2, 3_600_000, finished_seconds=(50.0, 60.0, 100.0)))
    many = forecast_sweep(SweepPlan(20, 2, 3_600_000, finished_seconds=(50.0, 60.0, 100.0)))
    assert few is not None and many is not None
    assert few.cost_p50 <= few.cost_p90 and few.seconds_p50 <= few.seconds_p90
    assert few.cost_p50 < many.cost_p50
    assert forecast_sweep(SweepPlan(10, 2, 1)) is None
    hinted = forecast_sweep(SweepPlan(10, 1, 3_600_000, hint_seconds=60.0))
    assert hinted is not None and 0.5 < hinted.cost_p50 / 600_000 < 2
    account = Account("budget:a", 0, "once", few.cost_p50 + 1)
    (held,) = check_holding(few, [account])
    assert held.holds_p50 and not held.holds_p90


def test_a_budget_runs_out_when_what_is_left_is_burned():
    account = Account("budget:a", 0, "once", 1_000, charged_micro_usd=400, reserved_micro_usd=100)
    assert find_exhaustion(account, burn_micro_usd_per_hour=600, now_us=0) == 3_600 * SECOND_US
    assert find_exhaustion(account, burn_micro_usd_per_hour=0, now_us=0) is None


def test_predictions_grow_when_overrun():
    assert grow(10 * SECOND_US, ran_us=10 * SECOND_US) == 20 * SECOND_US
    assert (
        predict_trial(hint_us=9, finished_us=(20 * SECOND_US, 40 * SECOND_US), ran_us=5 * SECOND_US) == 25 * SECOND_US
    )
    assert predict_trial(hint_us=8 * SECOND_US, finished_us=(), ran_us=0) == 8 * SECOND_US


def test_the_gittins_time_tries_a_short_hope_first():
    index, stretch = find_gittins_time([(1, 1.0), (1_000, 1.0)])
    assert (index, stretch) == (2.0, 1)
    assert find_gittins_time([(10, 1.0), (10, 1.0)]) == (10.0, 10)


def test_learned_never_looks_at_the_duration_before_the_end():
    def predictions(duration_us: int) -> list[int]:
        predictor = Learned()
        jobs = [Job(str(n), n, 1_000, duration_us) for n in range(3)]
        for job in jobs:
            predictor.submit(job)
        predictor.start(jobs[0], ran_us=0, now_us=0)
        predictor.list_stale(100 * SECOND_US)
        return [predictor.predict(job, ran_us=0) for job in jobs]

    assert predictions(5 * SECOND_US) == predictions(10**6 * SECOND_US)


def test_a_signed_claim_is_asked_for_and_checked():
    key = Ed25519PrivateKey.generate()
    import base64

    public = "ed25519:" + base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()
    node = BudgetNode("team", spenders=(Spender("ann", public),), needs_signature=True)
    claim = make_claim(budget="team", person="ann", until_us=100, sign=key.sign)
    assert check_spender([node], person="ann", claim=claim, now_us=50) == ()
    stolen = make_claim(budget="team", person="ann", until_us=100, sign=Ed25519PrivateKey.generate().sign)
    cases = {
        "no claim": ("ann", "", 50),
        "an expired claim": ("ann", claim, 101),
        "another key": ("ann", stolen, 50),
        "another person": ("bob", claim, 50),
        "rubbish": ("ann", "rub.bish", 50),
        "another budget": ("ann", make_claim(budget="x", person="ann", until_us=100, sign=key.sign), 50),
    }
    for name, (person, given, now_us) in cases.items():
        assert check_spender([node], person=person, claim=given, now_us=now_us), name


def one_tree(**changes) -> BudgetTree:
    return BudgetTree.of([BudgetNode("x", **changes)], rates=RateCard(()))


def test_what_can_never_fit_is_refused_naming_the_limit():
    nodes = (Node("n", "g", 8_000),)
    tree = one_tree(quotas={"g": Quota(4_000)})
    texts = {
        action.group_id: action.reason.text
        for action in decide(
            State(tree, nodes, (Group("c", "x", "g", 9_000, 1, 0), Group("q", "x", "g", 5_000, 1, 0))), 0
        )
        if isinstance(action, Refuse)
    }
    assert "at most 8, 8 in all" in texts["c"]
    assert "never have more than 4" in texts["q"]


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ([(10, 1.0, True), (20, 1.0, True)], [(10, 1.0), (20, 1.0)]),
        ([(10, 1.0, True), (15, 1.0, False), (20, 1.0, True)], [(10, 1.0), (20, 2.0)]),
        ([(5, 1.0, False), (10, 1.0, True), (20, 1.0, True)], [(10, 1.5), (20, 1.5)]),
        ([(10, 1.0, True), (30, 2.0, False)], [(10, 1.0), (60, 2.0)]),
        ([(10, 1.0, False), (10, 1.0, True)], [(10, 1.0), (20, 1.0)]),
    ],
    ids=[
        "all finished",
        "to what is longer",
        "to all that is longer",
        "nothing outlasts it",
        "finished first in a tie",
    ],
)
def test_unfinished_times_give_their_weight_to_longer_ones(sample, expected):
    assert spread_unfinished(sample) == [(time, pytest.approx(weight)) for time, weight in expected]


def test_a_group_waits_for_money_and_for_policy_with_the_reason():
    nodes = (Node("n", "g", 8_000),)
    group = Group("a", "x", "g", 1_000, SECOND_US, 0, price_micro_usd_per_hour=3_600_000, prepaid_us=60 * SECOND_US)
    (poor,) = decide(State(one_tree(), nodes, (group,), money_left={"x": 59_999}), 0)
    assert isinstance(poor, Wait) and poor.reason.code == "cap-exceeded"
    (stopped,) = decide(State(one_tree(), nodes, (group,), actions={"x": frozenset({"no-new-trials"})}), 0)
    assert isinstance(stopped, Wait) and stopped.reason.code == "budget-policy"
    (start,) = decide(State(one_tree(), nodes, (group,), money_left={"x": 60_000}), 0)
    assert isinstance(start, Start)


def test_elastic_groups_shrink_before_anyone_is_evicted_and_grow_when_nobody_waits():
    nodes = (Node("n", "g", 8_000),)
    elastic = Group(
        "e", "x", "g", 8_000, 1_000 * SECOND_US, 0, status="running", placement=(("n", 8_000),),
        minimum_units=2_000, maximum_units=8_000, step_units=2_000,
    )  # fmt: skip
    other = Group("o", "x", "g", 3_000, 10 * SECOND_US, 0)
    late = 1_000 * SECOND_US
    actions = decide(State(one_tree(), nodes, (elastic, other)), late)
    assert [(type(a), a.group_id) for a in actions] == [(Resize, "e"), (Start, "o")]
    assert actions[0].placement == (("n", 4_000),)
    small = Group(
        **{**{f: getattr(elastic, f) for f in Group.__dataclass_fields__}, "units": 2_000, "placement": (("n", 2_000),)}
    )
    (grown,) = decide(State(one_tree(), nodes, (small,)), late)
    assert isinstance(grown, Resize) and grown.placement == (("n", 8_000),)


def test_a_replay_gives_the_figures_one_can_compute_by_hand():
    jobs = [
        Job("a", 0, 8_000, 100 * SECOND_US),
        Job("b", 0, 8_000, 50 * SECOND_US),
        Job("c", 10 * SECOND_US, 16_000, SECOND_US),
    ]
    result = simulate(jobs, make_cluster(1, 8), predictor=Exact(), settings=Settings(restart_us=10 * SECOND_US))
    figures = result.to_json()
    assert sorted(result.completion_s) == [60.0, 170.0]
    assert figures["makespan_s"] == 170.0
    assert figures["utilisation"] == pytest.approx(150 / 170)
    assert [job_id for job_id, _ in result.refused] == ["c"]


def test_noise_is_the_same_for_the_same_seed():
    job = Job("a", 0, 1_000, 100 * SECOND_US)
    assert Noisy(1.0).predict(job, ran_us=0) == Noisy(1.0).predict(job, ran_us=0) != 100 * SECOND_US


def test_traces_are_read_as_they_are_and_broken_lines_are_listed(tmp_path: Path):
    muri = tmp_path / "muri.csv"
    muri.write_text("job_id,num_gpu,submit_time,iterations,model_name,batch_size,duration\n0,4,1000,9,vgg19,16,5000\n")
    (job,) = read_trace(muri)
    assert (job.units, job.submitted_us, job.duration_us) == (4_000, SECOND_US, 5 * SECOND_US)
    own = tmp_path / "own.csv"
    own.write_text("job_id,submit_s,accelerators,duration_s\na,0,0.5,1.5\nb,1,0,2\nc,x,1,2\nd,1,1,-2\n")
    with pytest.raises(ProjectError) as caught:
        read_trace(own)
    assert [item.split(":")[-2][-1] for item in caught.value.items[:1]] == ["3"]
    assert len(caught.value.items) == 3
    other = tmp_path / "other.csv"
    other.write_text("x,y\n1,2\n")
    with pytest.raises(ProjectError, match="not a trace"):
        read_trace(other)
