"""Measures the budget room beside published figures: `make bench-budgets`, or one part by `--only NAME`.

The traces are read from ../shared/data/traces (or `MLOPS_TRACES`); a part whose input is absent says so.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mlops.budgets.board import Board
from mlops.budgets.configuration import apply_budgets
from mlops.budgets.decide import decide, decide_on
from mlops.budgets.learned import Learned
from mlops.budgets.leases import Lease, LeaseBook, LeaseRequest
from mlops.budgets.prediction import Exact, Noisy
from mlops.budgets.simulate import make_cluster, simulate
from mlops.budgets.state import Group, Node, Preempt, Settings, Start, State
from mlops.budgets.trace import read_trace
from mlops.budgets.tree import BudgetNode, BudgetTree, Quota, RateCard, RateVersion
from mlops.clock import SECOND_US, SystemClock
from mlops.ids import TimeIds
from mlops.ledger.connection import open_ledger, sqlite_url
from mlops.units import Accelerators

ROOT = Path(__file__).resolve().parent.parent
TRACES = Path(os.environ.get("MLOPS_TRACES", ROOT.parent / "shared/data/traces"))
RESULTS = ROOT / "benchmarks/results/budgets.json"


def row(name: str, ours: float, *, rival: float | None, asked: float, is_at_most: bool, unit: str, how: str) -> dict:
    holds = ours <= asked if is_at_most else ours >= asked
    return {"name": name, "ours": ours, "rival": rival, "asked": asked, "holds": holds, "unit": unit, "how": how}


def published(trace: str, policy: str) -> dict[str, float]:
    with (TRACES / "published_results.csv").open() as file:
        for entry in csv.DictReader(file):
            if entry["trace"] == trace and entry["policy"] == policy:
                return {key: float(entry[key]) for key in ("avg_jct_s", "makespan_s", "p99_jct_s")}
    raise KeyError((trace, policy))


def bench_exact() -> list[dict]:
    rows = []
    for trace, asked in (("muri_trace3", 175_000), ("muri_trace4", 475_000)):
        srsf = published(trace, "SRSF")
        result = simulate(read_trace(TRACES / f"{trace}.csv"), make_cluster(8, 8), predictor=Exact())
        ours = result.to_json()
        how = f"64 GPUs, exact durations, 30 s per (re)start, {ours['preemptions']} preemptions; rival SRSF"
        for key, rival_key, limit in (
            ("average_completion_s", "avg_jct_s", asked),
            ("p99_completion_s", "p99_jct_s", srsf["p99_jct_s"]),
            ("makespan_s", "makespan_s", srsf["makespan_s"]),
        ):
            rows.append(
                row(f"{trace} {key}", ours[key], rival=srsf[rival_key], asked=limit, is_at_most=True, unit="s", how=how)
            )
        noisy = simulate(read_trace(TRACES / f"{trace}.csv"), make_cluster(8, 8), predictor=Noisy(1.0)).to_json()
        best = min(published(trace, policy)["avg_jct_s"] for policy in ("Tiresias", "Themis"))
        how = "durations off by lognormal sigma 1; rival: better of Tiresias and Themis; context, nothing was asked"
        rows.append(
            row(
                f"{trace} noisy:1 average_completion_s", noisy["average_completion_s"], rival=best, asked=best,
                is_at_most=True, unit="s", how=how,
            )
        )  # fmt: skip
    return rows


def bench_learned(spread: bool = True) -> list[dict]:
    rows = []
    for trace in ("muri_trace3", "muri_trace4"):
        best = min(published(trace, policy)["avg_jct_s"] for policy in ("Tiresias", "Themis"))
        jobs = read_trace(TRACES / f"{trace}.csv")
        settings = [{}, {"reach": 8}, {"reach": 64}, {"prior_weight": 0.3}, {"prior_weight": 3.0}]
        if not spread:
            settings = settings[:1]
        found = [
            simulate(jobs, make_cluster(8, 8), predictor=Learned(**each)).to_json()["average_completion_s"]
            for each in settings
        ]
        how = f"default setting; over {len(found)} settings {min(found):,.0f} to {max(found):,.0f} s"
        rows.append(
            row(
                f"{trace} learned average_completion_s", found[0], rival=best, asked=best * 0.9, is_at_most=True,
                unit="s", how=how + "; rival: better of Tiresias and Themis",
            )
        )  # fmt: skip
    return rows


KUEUE_CLASSES = (  # count per queue, units, run seconds, seconds between arrivals, priority
    (350, 1, 0.2, 0.1, 50),
    (100, 5, 0.5, 0.5, 100),
    (50, 20, 1.0, 1.2, 200),
)


def kueue_tree() -> BudgetTree:
    cohorts = [BudgetNode(f"cohort-{c}") for c in range(5)]
    queues = [
        BudgetNode(f"queue-{c}-{q}", parent=f"cohort-{c}", quotas={"unit": Quota(20_000, borrow=100_000)})
        for c in range(5)
        for q in range(6)
    ]
    return BudgetTree.of([*cohorts, *queues], rates=RateCard((RateVersion(0, {"unit": 3_600}),)))


def kueue_arrivals() -> list[tuple[int, int, Group, int]]:
    found = []
    for name in (node.name for node in kueue_tree().nodes if node.parent):
        for number, (count, units, run_s, every_s, priority) in enumerate(KUEUE_CLASSES):
            run_us = round(run_s * SECOND_US)
            for index in range(count):
                at_us = round((index + 1) * every_s * SECOND_US)
                group = Group(f"{name}/{number}/{index}", name, "unit", units * 1_000, run_us, at_us, priority=priority)
                found.append((at_us, len(found), group, run_us))
    return sorted(found, key=lambda arrival: arrival[:2])


class KueueReplay:
    """The scenario, in virtual time (pure core) or in real time with every start and end through the ledger."""

    def __init__(self, book: LeaseBook | None, ledger=None) -> None:
        rules = Settings(minimum_run_us=0, restart_us=0, is_preempting_by_work=False)
        state = State(kueue_tree(), (Node("all", "unit", 600_000),), (), settings=rules)
        self.board = Board(state, now_us=0)
        self.book, self.ledger = book, ledger
        self.arrivals = kueue_arrivals()
        self.ends: list[tuple[int, int, str]] = []
        self.epoch: dict[str, int] = {}
        self.leases: dict[str, Lease] = {}
        self.run_us = {group.group_id: run_us for _, _, group, run_us in self.arrivals}
        self.waited: dict[int, list[float]] = {50: [], 100: [], 200: []}
        self.ended = self.starts = self.preempted = self.refused = 0
        self.core_seconds = 0.0

    def run(self) -> float:
        began = time.monotonic()
        next_arrival, now_us = 0, 0
        while self.ended < len(self.arrivals):
            due = [self.arrivals[next_arrival][0]] if next_arrival < len(self.arrivals) else []
            due += [self.ends[0][0]] if self.ends else []
            if self.book is None:
                now_us = min(due)
            else:
                now_us = round((time.monotonic() - began) * SECOND_US)
                if now_us < min(due):
                    time.sleep((min(due) - now_us) / SECOND_US)
                    now_us = round((time.monotonic() - began) * SECOND_US)
            core = time.perf_counter()
            finished = self._finish(now_us)
            while next_arrival < len(self.arrivals) and self.arrivals[next_arrival][0] <= now_us:
                self.board.add(self._arrived(self.arrivals[next_arrival][2], now_us), now_us=now_us)
                next_arrival += 1
            actions = decide_on(self.board, now_us, with_reasons=False)
            self.core_seconds += time.perf_counter() - core
            self._apply(actions, finished, began, now_us)
        return time.monotonic() - began if self.book is not None else now_us / SECOND_US

    def _arrived(self, group: Group, now_us: int) -> Group:
        from dataclasses import replace

        return replace(group, waiting_since_us=now_us)

    def _finish(self, now_us: int) -> list[str]:
        finished = []
        while self.ends and self.ends[0][0] <= now_us:
            _, epoch, group_id = heapq.heappop(self.ends)
            if self.epoch.get(group_id) == epoch:
                self.board.remove(group_id)
                finished.append(group_id)
                self.ended += 1
        return finished

    def _apply(self, actions, finished: list[str], began: float, now_us: int) -> None:
        stopped = [action.group_id for action in actions if isinstance(action, Preempt)]
        started = [action.group_id for action in actions if isinstance(action, Start)]
        self.preempted += len(stopped)
        self.starts += len(started)
        if self.book is not None and (finished or stopped or started):
            self._through_ledger([*finished, *stopped], started)
            now_us = round((time.monotonic() - began) * SECOND_US)  # it runs from when it was paid
        for group_id in started:
            epoch = self.epoch[group_id] = self.epoch.get(group_id, 0) + 1
            heapq.heappush(self.ends, (now_us + self.run_us[group_id], epoch, group_id))
            entry = self.board.entries[group_id]
            entry.ends_us = now_us + self.run_us[group_id]
            if epoch == 1:
                self.waited[entry.priority].append((now_us - entry.group.submitted_us) / SECOND_US)
        for group_id in stopped:
            if group_id not in started:
                self.epoch[group_id] += 1

    def _through_ledger(self, ended: list[str], started: list[str]) -> None:
        with self.ledger.write() as transaction:
            settled = [self.leases.pop(group_id) for group_id in ended]
            self.book.settle_many_in(transaction, [(lease, transaction.now_us) for lease in settled])
            requests = [
                LeaseRequest(
                    key=f"{group_id}#{self.epoch.get(group_id, 0) + 1}", budget=group_id.split("/")[0],
                    accelerators=Accelerators("unit", self.board.entries[group_id].units / 1000), window_seconds=5,
                    grace_seconds=1, checkpoint_seconds=1, holder="replay", group_id=group_id,
                )
                for group_id in started
            ]  # fmt: skip
            for request, lease in zip(requests, self.book.reserve_many_in(transaction, requests), strict=True):
                assert isinstance(lease, Lease), lease
                self.leases[request.group_id] = lease


def bench_kueue() -> list[dict]:
    pure = KueueReplay(None)
    began = time.process_time()
    virtual = pure.run()
    elapsed = time.process_time() - began
    actions = pure.starts + pure.preempted
    rate = actions / elapsed
    rows = [
        row("kueue scenario, pure core", rate, rival=None, asked=2_000, is_at_most=False, unit="actions/s",
            how=f"{actions} starts and preemptions in {elapsed:.1f} s of CPU; virtual makespan {virtual:.1f} s"),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(dir=ROOT / ".mlops" if (ROOT / ".mlops").is_dir() else None) as folder:
        clock = SystemClock()
        ledger = open_ledger(sqlite_url(Path(folder) / "ledger.sqlite"), clock)
        apply_budgets(ledger, kueue_tree(), who="benchmark")
        replay = KueueReplay(LeaseBook(ledger, clock, TimeIds(clock)), ledger)
        seconds = replay.run()
        ledger.close()
    waited = ", ".join(
        f"{p}: {statistics.mean(values):.1f}" for p, values in sorted(replay.waited.items(), reverse=True)
    )
    how = (
        f"15,000 groups, {replay.starts} starts, {replay.preempted} preempted (their work lost), real time, every "
        f"start and end through SQLite with full durability; mean wait by priority {waited} s; Kueue pays an API "
        f"server, we do not"
    )
    rows.append(row("kueue scenario, real time", seconds, rival=351.1, asked=80, is_at_most=True, unit="s", how=how))
    return rows


def _hammer(url: str, number: int, seconds: float, out) -> None:
    clock = SystemClock()
    ledger = open_ledger(url, clock)
    book = LeaseBook(ledger, clock, TimeIds(clock))
    count, longest, index = 0, 0.0, 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        index += 1
        asked = time.monotonic()
        lease = book.reserve(
            LeaseRequest(
                key=f"{number}-{index}", budget="team", accelerators=Accelerators("cpu", 1), window_seconds=60,
                grace_seconds=1, checkpoint_seconds=1, holder=f"p{number}",
            )
        )  # fmt: skip
        between = time.monotonic()
        if isinstance(lease, Lease):
            book.settle(
                lease.lease_id, fencing_token=lease.fencing_token, ended_us=clock.now_us(), key=f"s{number}-{index}"
            )
        longest = max(longest, between - asked, time.monotonic() - between)
        count += 2
    out.put((count, longest))
    ledger.close()


def bench_ledger(seconds: float = 8.0) -> list[dict]:
    from mlops.budgets.replay import find_differences, load_tables

    cap = 2_000_000
    with tempfile.TemporaryDirectory() as folder:
        url = sqlite_url(Path(folder) / "ledger.sqlite")
        clock = SystemClock()
        ledger = open_ledger(url, clock)
        nodes = [BudgetNode("company", cap_micro_usd=cap * 2), BudgetNode("team", parent="company", cap_micro_usd=cap)]
        apply_budgets(ledger, BudgetTree.of(nodes, rates=RateCard((RateVersion(0, {"cpu": 36_000}),))), who="benchmark")
        context = multiprocessing.get_context("spawn")
        out = context.Queue()
        workers = [context.Process(target=_hammer, args=(url, number, seconds, out)) for number in range(8)]
        for worker in workers:
            worker.start()
        found = [out.get() for _ in workers]
        for worker in workers:
            worker.join()
        with ledger.read() as connection:
            differences = find_differences(connection)
            held = load_tables(connection).accounts
        ledger.close()
    overshoot = max(balances[0] + balances[1] for (scope, _), balances in held.items() if scope == "budget:team") - cap
    rate = sum(count for count, _ in found) / seconds
    how = "8 processes, reserve and settle over 2 budgets, each on the disk before it is answered, events chained"
    return [
        row("ledger transactions, 8 processes", rate, rival=None, asked=500, is_at_most=False, unit="tx/s", how=how),
        row("longest wait of any of them", max(longest for _, longest in found), rival=None, asked=1.0, is_at_most=True,
            unit="s", how="first come, first served queue in front of SQLite's lock"),
        row("overshoot, and events against tables", max(overshoot, 0) + len(differences), rival=None, asked=0,
            is_at_most=True, unit="micro-USD + differences", how="replayed after the run"),
    ]  # fmt: skip


def bench_growth() -> list[dict]:
    generator = random.Random(1)
    nodes = make_cluster(250, 8)
    tenants = [BudgetNode(f"team-{n}", parent="company", quotas={"gpu": Quota(66_000, borrow=None)}) for n in range(30)]
    tree = BudgetTree.of([BudgetNode("company", quotas={"gpu": Quota(2_000_000)}), *tenants], rates=RateCard(()))
    groups = []
    for number in range(1_000):
        node = number // 4
        groups.append(
            Group(
                f"r{number}", f"team-{number % 30}", "gpu", 2_000, generator.randint(1, 10**6) * SECOND_US, 0,
                status="running", placement=((f"node-{node:04d}", 2_000),), priority=500,
            )
        )  # fmt: skip
    for number in range(10_000):
        groups.append(
            Group(
                f"p{number}", f"team-{generator.randrange(30)}", "gpu", generator.choice([1, 2, 4, 8, 16]) * 1_000,
                generator.randint(1, 10**6) * SECOND_US, number, priority=generator.choice([100, 500, 700]),
            )
        )  # fmt: skip
    now_us = 10**9
    state = State(tree, nodes, tuple(groups))
    kept, wall, fresh = [], [], []
    for _ in range(5):
        board = Board(state, now_us=now_us)
        decide_on(board, now_us, with_reasons=False)  # fills what is free; then the steady state is measured
        began, began_cpu = time.perf_counter(), time.process_time()
        decide_on(board, now_us + 61 * SECOND_US, with_reasons=False)
        kept.append((time.process_time() - began_cpu) * 1000)
        wall.append((time.perf_counter() - began) * 1000)
    began = time.perf_counter()
    decide(state, now_us)
    fresh.append((time.perf_counter() - began) * 1000)
    how = (
        f"10,000 waiting, 1,000 running, 30 teams; CPU time with a kept board (best wall time {min(wall):.0f} ms); "
        f"built anew with all reasons {fresh[0]:.0f} ms"
    )
    ours = statistics.median(kept)
    return [row("one decision at growth", ours, rival=None, asked=50, is_at_most=True, unit="ms", how=how)]


PARTS: dict[str, Callable[[], list[dict]]] = {
    "growth": bench_growth,
    "ledger": bench_ledger,
    "kueue": bench_kueue,
    "exact": bench_exact,
    "learned": bench_learned,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(PARTS), action="append")
    chosen = parser.parse_args().only or list(PARTS)
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() and chosen != list(PARTS) else []
    for name in chosen:
        if name in {"exact", "learned"} and not TRACES.is_dir():
            print(f"{name}: skipped, {TRACES} is absent", file=sys.stderr)
            continue
        fresh = PARTS[name]()
        rows = [each for each in rows if each["name"] not in {new["name"] for new in fresh}] + fresh
        for each in fresh:
            rival = "-" if each["rival"] is None else f"{each['rival']:,.0f}"
            sign = "yes" if each["holds"] else "NO"
            print(
                f"{each['name']:48} {each['ours']:>14,.1f} {rival:>12} {each['asked']:>14,.1f} {sign:4} {each['unit']}"
            )
            print(f"    {each['how']}", flush=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
