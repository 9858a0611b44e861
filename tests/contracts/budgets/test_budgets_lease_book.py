"""One suite for the lease book: on memory (SQLite without a file), on an SQLite file, and on PostgreSQL."""

import shutil
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mlops.budgets.configuration import apply_budgets, set_budget
from mlops.budgets.leases import Lease, LeaseBook, LeaseRequest, Settlement, SpendLimit
from mlops.budgets.outbox import deliver_due, list_warnings
from mlops.budgets.replay import find_differences, load_tables
from mlops.budgets.tree import BudgetNode, BudgetTree, Quota, RateCard, RateVersion, Threshold
from mlops.clock import DAY_US, SECOND_US, FakeClock
from mlops.errors import Refusal
from mlops.ids import CountingIds
from mlops.ledger.connection import Ledger, open_ledger, sqlite_url
from mlops.ledger.sql_events import find_broken_event
from mlops.units import Accelerators

USD = 1_000_000
RATES = RateCard((RateVersion(0, {"h100": 3_600_000, "cpu": 36_000}),))  # 3.60 USD/h = 1,000 micro-USD a second


def _find_postgres() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def _as_system_user(command: list[str]) -> list[str]:
    import os

    return ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else command


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory):
    binaries = _find_postgres()
    if binaries is None:
        pytest.skip("postgresql is not installed (Debian package `postgresql`)")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    folder = Path("/tmp") / f"mlops-postgres-{time.time_ns()}"  # pytest's own folders are closed to the system user
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    control = str(binaries / "pg_ctl")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c shared_buffers=16MB"
    try:
        init = [str(binaries / "initdb"), "-D", str(data), "-U", "mlops", "--auth=trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(_as_system_user(init), check=True, capture_output=True, cwd="/")
        start = [control, "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start"]
        subprocess.run(
            _as_system_user(start), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
        )
        yield f"postgresql+psycopg://mlops@127.0.0.1:{port}/postgres"
    finally:
        stop = [control, "-D", str(data), "-m", "immediate", "stop"]
        subprocess.run(_as_system_user(stop), check=False, capture_output=True, cwd="/")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.system)])
def clocked_ledger(request: pytest.FixtureRequest, tmp_path: Path):
    clock = FakeClock()
    if request.param == "memory":
        ledger = open_ledger("sqlite://", clock)
    elif request.param == "sqlite":
        ledger = open_ledger(sqlite_url(tmp_path / "ledger.sqlite"), clock)
    else:
        import sqlalchemy as sa

        url = request.getfixturevalue("postgres_url")
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.execute(sa.text("DROP SCHEMA public CASCADE"))
            connection.execute(sa.text("CREATE SCHEMA public"))
        engine.dispose()
        ledger = open_ledger(url, clock)
    yield ledger, clock
    ledger.close()


def _tree(**changes) -> BudgetTree:
    company = BudgetNode("company", cap_micro_usd=100 * USD, thresholds=(Threshold(5_000, "warn"),))
    team = BudgetNode("team", parent="company", cap_micro_usd=10 * USD)
    return BudgetTree.of([company, replace(team, **changes)], rates=RATES)


def _request(key: str = "k", **changes) -> LeaseRequest:
    base = LeaseRequest(
        key=key, budget="team", accelerators=Accelerators("h100", 1), window_seconds=60, grace_seconds=10,
        checkpoint_seconds=30, holder="driver",
    )  # fmt: skip
    return replace(base, **changes)


@pytest.fixture
def book(clocked_ledger):
    ledger, clock = clocked_ledger
    apply_budgets(ledger, _tree(), who="test")
    yield LeaseBook(ledger, clock, CountingIds())
    with ledger.read() as connection:
        assert find_differences(connection) == ()
        assert find_broken_event(connection) is None


def _balances(ledger: Ledger) -> dict[str, tuple[int, int]]:
    with ledger.read() as connection:
        return {scope: (held[0], held[1]) for (scope, _), held in load_tables(connection).accounts.items()}


def _codes(answer) -> list[str]:
    assert isinstance(answer, Refusal), answer
    return [reason.code for reason in answer.reasons]


def test_reserve_pays_window_grace_and_checkpoint_in_every_ancestor(book, clocked_ledger):
    lease = book.reserve(_request(limits=(SpendLimit("sweep:1", USD),)))
    assert isinstance(lease, Lease)
    assert lease.reserved_micro_usd == 100_000
    assert lease.window_ends_us - lease.started_us == 60 * SECOND_US
    assert lease.expires_us - lease.started_us == 100 * SECOND_US
    expected = dict.fromkeys(["sweep:1", "budget:team", "budget:company"], (0, 100_000))
    assert _balances(clocked_ledger[0]) == expected


def test_settle_charges_the_time_used_and_refunds_the_rest(book, clocked_ledger):
    lease = book.reserve(_request())
    answer = book.settle(
        lease.lease_id, fencing_token=lease.fencing_token, ended_us=lease.started_us + 25 * SECOND_US, key="s"
    )
    assert isinstance(answer, Settlement)
    assert (answer.charged_micro_usd, answer.refunded_micro_usd) == (25_000, 75_000)
    assert _balances(clocked_ledger[0])["budget:company"] == (25_000, 0)


@pytest.mark.parametrize("ended_after_s", [None, 500])
def test_an_unknown_or_late_end_is_charged_to_the_expiry(book, ended_after_s):
    lease = book.reserve(_request())
    ended = None if ended_after_s is None else lease.started_us + ended_after_s * SECOND_US
    answer = book.settle(lease.lease_id, fencing_token=lease.fencing_token, ended_us=ended, key="s")
    assert answer.charged_micro_usd == 100_000


def test_an_end_before_the_start_is_charged_nothing(book):
    lease = book.reserve(_request())
    answer = book.settle(
        lease.lease_id, fencing_token=lease.fencing_token, ended_us=lease.started_us - SECOND_US, key="s"
    )
    assert (answer.charged_micro_usd, answer.ended_us) == (0, lease.started_us)


def test_renewal_charges_what_was_used_and_pays_from_now(book, clocked_ledger):
    ledger, clock = clocked_ledger
    lease = book.reserve(_request())
    clock.advance(50)
    renewed = book.renew(lease.lease_id, fencing_token=lease.fencing_token, window_seconds=60, key="r")
    assert (renewed.charged_micro_usd, renewed.reserved_micro_usd) == (50_000, 100_000)
    assert renewed.expires_us == clock.now_us() + 100 * SECOND_US
    assert _balances(ledger)["budget:team"] == (50_000, 100_000)


def test_the_same_key_is_done_once_and_gives_the_same_answer(book, clocked_ledger):
    first = book.reserve(_request())
    assert book.reserve(_request()) == first
    renewals = [book.renew(first.lease_id, fencing_token=first.fencing_token, window_seconds=60, key="r") for _ in "12"]
    assert renewals[0] == renewals[1]
    ends = [
        book.settle(first.lease_id, fencing_token=first.fencing_token, ended_us=first.started_us, key="s") for _ in "12"
    ]
    assert ends[0] == ends[1]
    assert _balances(clocked_ledger[0])["budget:team"] == (0, 0)


def test_a_key_that_stands_for_another_request_is_refused(book):
    book.reserve(_request())
    assert _codes(book.reserve(_request(window_seconds=61))) == ["key-reused"]


def test_the_cap_is_never_exceeded_and_the_refusal_names_every_short_scope(book, clocked_ledger):
    ledger, _ = clocked_ledger
    granted = [book.reserve(_request(f"k{number}", window_seconds=960)) for number in range(12)]
    assert sum(isinstance(each, Lease) for each in granted) == 10
    assert _codes(granted[-1]) == ["cap-exceeded"]
    assert "budget:team has 10.00 USD per month" in granted[-1].render_text()
    assert sum(_balances(ledger)["budget:team"]) == 10 * USD


def test_an_own_limit_of_the_sweep_is_kept(book):
    limits = (SpendLimit("sweep:1", 150_000),)
    assert isinstance(book.reserve(_request("a", limits=limits)), Lease)
    assert _codes(book.reserve(_request("b", limits=limits))) == ["limit-exceeded"]


REFUSED = {
    "an unknown budget": ({"budget": "nobody"}, "unknown-budget"),
    "an accelerator without a price": ({"accelerators": Accelerators("abacus", 1)}, "unknown-accelerator"),
    "a negative window": ({"window_seconds": -5.0}, "bad-request"),
    "a window that never ends": ({"window_seconds": float("inf")}, "bad-request"),
    "a window of a year": ({"window_seconds": 365 * 86_400.0}, "bad-request"),
    "an absurd number of accelerators": ({"accelerators": Accelerators("h100", 1e9)}, "bad-request"),
    "a limit that poses as a budget": ({"limits": (SpendLimit("budget:company", 5),)}, "bad-request"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_reason(book, clocked_ledger, case):
    changes, code = REFUSED[case]
    assert code in _codes(book.reserve(_request(**changes)))
    assert _balances(clocked_ledger[0]) == {}


def test_a_former_holder_can_do_nothing(book):
    lease = book.reserve(_request())
    assert _codes(book.renew(lease.lease_id, fencing_token=lease.fencing_token - 1, window_seconds=60, key="r")) == [
        "fenced"
    ]
    assert _codes(book.settle(lease.lease_id, fencing_token=0, ended_us=None, key="s")) == ["fenced"]


def test_fencing_tokens_grow(book):
    tokens = [book.reserve(_request(f"k{number}")).fencing_token for number in range(5)]
    assert tokens == sorted(set(tokens))


def test_a_lease_cannot_be_renewed_after_its_expiry(book, clocked_ledger):
    lease = book.reserve(_request())
    clocked_ledger[1].advance(100)
    assert _codes(book.renew(lease.lease_id, fencing_token=lease.fencing_token, window_seconds=60, key="r")) == [
        "lease-expired"
    ]


def test_a_vanished_holder_is_charged_to_the_expiry_once(book, clocked_ledger):
    ledger, clock = clocked_ledger
    lease = book.reserve(_request())
    clock.advance(99)
    assert book.close_expired() == ()
    clock.advance(1)
    assert [each.charged_micro_usd for each in book.close_expired()] == [100_000]
    assert book.close_expired() == ()
    assert _codes(book.renew(lease.lease_id, fencing_token=lease.fencing_token, window_seconds=60, key="r")) == [
        "lease-ended"
    ]
    late = book.settle(lease.lease_id, fencing_token=lease.fencing_token, ended_us=lease.started_us, key="s")
    assert (late.charged_micro_usd, late.cause) == (100_000, "expired")
    assert _balances(ledger)["budget:team"] == (100_000, 0)


def test_a_renewal_in_the_next_period_is_paid_by_the_next_period(book, clocked_ledger):
    ledger, clock = clocked_ledger
    clock.jump(40)  # to 30 s before a month ends, below
    from mlops.budgets.tree import find_period_end

    end_us = find_period_end("month", at_us=clock.now_us())
    clock.jump((end_us - clock.now_us()) / SECOND_US - 30)
    lease = book.reserve(_request())
    clock.advance(50)
    book.renew(lease.lease_id, fencing_token=lease.fencing_token, window_seconds=60, key="r")
    with ledger.read() as connection:
        held = load_tables(connection).accounts
    assert [balances[:2] for key, balances in sorted(held.items()) if key[0] == "budget:team"] == [
        [50_000, 0],
        [0, 100_000],
    ]


def test_a_clock_that_jumps_back_never_makes_time_cheaper(book, clocked_ledger):
    ledger, clock = clocked_ledger
    lease = book.reserve(_request())
    clock.jump(-3_600)
    renewed = book.renew(lease.lease_id, fencing_token=lease.fencing_token, window_seconds=60, key="r")
    assert renewed.expires_us >= lease.expires_us
    assert sum(_balances(ledger)["budget:team"]) >= 100_000


def test_a_cap_lowered_below_what_is_spent_stops_renewals_but_not_settlement(book, clocked_ledger):
    ledger, clock = clocked_ledger
    lease = book.reserve(_request())
    team = replace(
        _tree().by_name["team"], cap_micro_usd=50_000, thresholds=(Threshold(10_000, "checkpoint-and-stop"),)
    )
    set_budget(ledger, team, who="boss", why="less money")
    clock.advance(55)
    assert "cap-exceeded" in _codes(
        book.renew(lease.lease_id, fencing_token=lease.fencing_token, window_seconds=60, key="r")
    )
    assert "cap-exceeded" in _codes(book.reserve(_request("k2")))
    answer = book.settle(lease.lease_id, fencing_token=lease.fencing_token, ended_us=clock.now_us(), key="s")
    assert answer.charged_micro_usd == 55_000
    with ledger.read() as connection:
        assert [notice.action for notice in list_warnings(connection)] == ["checkpoint-and-stop"]


def test_each_threshold_warns_once_per_period_and_delivery_is_retried(clocked_ledger):
    ledger, clock = clocked_ledger
    apply_budgets(ledger, _tree(thresholds=(Threshold(3_000, "warn"), Threshold(8_000, "no-new-trials"))), who="test")
    book = LeaseBook(ledger, clock, CountingIds())
    for number in range(9):
        book.reserve(_request(f"k{number}", window_seconds=960))
    with ledger.read() as connection:
        assert [notice.basis_points for notice in list_warnings(connection)] == [3_000, 8_000]
    seen = []

    def failing(notice):
        raise OSError("no network")

    assert len(deliver_due(ledger, [failing], now_us=clock.now_us())) == 2
    assert deliver_due(ledger, [seen.append], now_us=clock.now_us()) == ()
    clock.advance(10)
    deliver_due(ledger, [seen.append], now_us=clock.now_us())
    clock.advance(3_600)
    deliver_due(ledger, [seen.append], now_us=clock.now_us())
    assert [notice.basis_points for notice in seen] == [3_000, 8_000]
    assert seen[0].last_error == "OSError: no network"
    assert _codes(book.reserve(_request("late"))) == ["budget-policy"]
    with ledger.read() as connection:
        assert find_differences(connection) == ()
    clock.advance(40 * 86_400)
    book.close_expired()
    for number in range(4):
        book.reserve(_request(f"next{number}", window_seconds=960))
    with ledger.read() as connection:
        assert [notice.basis_points for notice in list_warnings(connection)] == [3_000, 8_000, 3_000]


def test_quota_is_kept_with_borrowing_and_what_siblings_keep_for_themselves(clocked_ledger):
    ledger, clock = clocked_ledger
    nodes = [
        BudgetNode("company", quotas={"h100": Quota(8_000)}),
        BudgetNode("a", parent="company", quotas={"h100": Quota(4_000, borrow=4_000)}),
        BudgetNode("b", parent="company", quotas={"h100": Quota(4_000, borrow=0, lend=2_000)}),
    ]
    apply_budgets(ledger, BudgetTree.of(nodes, rates=RATES), who="test")
    book = LeaseBook(ledger, clock, CountingIds())
    assert isinstance(book.reserve(_request("1", budget="a", accelerators=Accelerators("h100", 6))), Lease)
    refused = book.reserve(_request("2", budget="a"))
    assert _codes(refused) == ["quota-exceeded"]
    assert "do not lend" in refused.render_text()
    assert isinstance(book.reserve(_request("3", budget="b", accelerators=Accelerators("h100", 2))), Lease)
    assert _codes(book.reserve(_request("4", budget="b"))) == ["quota-exceeded"]


@pytest.mark.parametrize("policy", ["keep", "stop"])
def test_an_exhausted_budget_stops_growth_but_production_only_when_it_says_so(clocked_ledger, policy):
    ledger, clock = clocked_ledger
    stop = Threshold(10_000, "checkpoint-and-stop")
    apply_budgets(ledger, _tree(cap_micro_usd=150_000, serving=policy, thresholds=(stop,)), who="test")
    book = LeaseBook(ledger, clock, CountingIds())
    lease = book.reserve(_request(purpose="serving"))
    clock.advance(59)
    renewed = book.renew(lease.lease_id, fencing_token=lease.fencing_token, window_seconds=60, key="r")
    assert isinstance(renewed, Lease if policy == "keep" else Refusal)
    assert isinstance(book.reserve(_request("more", purpose="serving")), Refusal)
    with ledger.read() as connection:
        held = load_tables(connection)
        assert find_differences(connection) == ()
        assert [notice.basis_points for notice in list_warnings(connection)] == [10_000]
    overdraft = next(balances[2] for key, balances in held.accounts.items() if key[0] == "budget:team")
    assert overdraft == (9_000 if policy == "keep" else 0)


def test_an_old_checkout_does_not_bring_an_old_cap_back(clocked_ledger):
    ledger, _ = clocked_ledger
    old, new = _tree(), _tree(cap_micro_usd=5 * USD)
    assert all(change.is_applied for change in apply_budgets(ledger, old, who="a"))
    assert [change.name for change in apply_budgets(ledger, new, who="b")] == ["team"]
    assert [change.is_applied for change in apply_budgets(ledger, old, who="a")] == [False]
    with ledger.read() as connection:
        assert load_tables(connection).budgets["team"]["content"]["cap_micro_usd"] == 5 * USD


def test_a_price_holds_for_the_whole_life_of_a_lease(clocked_ledger):
    ledger, clock = clocked_ledger
    dearer = RateVersion(clock.now_us() + DAY_US, {"h100": 7_200_000})
    tree = BudgetTree.of(_tree().nodes, rates=RateCard((*RATES.versions, dearer)))
    apply_budgets(ledger, tree, who="test")
    book = LeaseBook(ledger, clock, CountingIds())
    lease = book.reserve(_request(window_seconds=2 * 86_400))
    assert not isinstance(lease, Lease)  # 172.84 USD: more than the team has
    lease = book.reserve(_request("k2"))
    clock.advance(90)
    assert (
        book.renew(lease.lease_id, fencing_token=lease.fencing_token, window_seconds=60, key="r").reserved_micro_usd
        == 100_000
    )
    clock.advance(86_400)
    book.close_expired()
    assert book.reserve(_request("k3")).reserved_micro_usd == 200_000
