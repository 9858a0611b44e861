"""Sweeps against Ray Tune on the same cores, both logging to MLflow: `make bench-sweeps`, or parts by `--only NAME`.

Writes benchmarks/results/sweeps.json. Leaves to others: Tune's side (sweep_peers.py), the trainers (sweep_trainers.py).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import torch
import yaml
from reporting import RESULTS, Row, report
from sweep_trainers import DIGITS, DIGITS_SPEC, IDLE, IDLE_SPEC, PASSES

from mlops.budgets.opening import open_lease_queue
from mlops.clock import SystemClock
from mlops.datasets.reader import ShardReader
from mlops.datasets.version import load_dataset_version
from mlops.errors import Refusal
from mlops.ids import TimeIds
from mlops.ledger.connection import open_ledger, sqlite_url
from mlops.places import Places
from mlops.provenance.digest import digest_json
from mlops.registry.mlflow_runs import open_mirror
from mlops.specs import parse_spec
from mlops.training import sql_trials
from mlops.training.launch import launch_sweep, make_request
from mlops.training.ray_cluster import connected, stop_local
from mlops.training.spec import SweepSpec

ROOT = Path(__file__).resolve().parents[1]
SLEEP = 0.05
PEER_SECONDS = 900.0


class Bench:
    """A project of its own with the dataset `digits`, its ledger, and a local Ray with so many CPUs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places = Places(folder / "project")
        subprocess.run(["git", "clone", "-q", str(ROOT), str(self.places.root)], check=True)
        self._import_digits()
        for name, text in (("idle", IDLE), ("digits", DIGITS)):
            self.places.trainer_file(name).write_text(text)
        self.clock = SystemClock()
        self.ids = TimeIds(self.clock)
        self.ledger = open_ledger(sqlite_url(self.places.ledger_file), self.clock)
        self.version = load_dataset_version(self.places, "digits")
        self._seed = 0

    def _import_digits(self) -> None:
        kept = ROOT / ".mlops/cache/bench-digits"
        if kept.exists():  # the download of an earlier run, by digest
            shutil.copytree(kept, self.places.downloads, dirs_exist_ok=True)
        mlops = str(Path(sys.executable).with_name("mlops"))
        subprocess.run([mlops, "dataset", "import", "digits"], cwd=self.places.root, check=True, capture_output=True)
        shutil.copytree(self.places.downloads, kept, dirs_exist_ok=True)

    def spec(self, text: str, **changes) -> SweepSpec:
        self._seed += 1
        content = {**yaml.safe_load(text), "seed": self._seed, **changes}
        return parse_spec(yaml.safe_dump(content), SweepSpec, source="bench.yaml")

    def launch(self, spec: SweepSpec) -> dict[str, float]:
        """One sweep, Ray being up: seconds until MLflow has it, group start, and when the first trial began."""
        starts: list[float] = []

        def say(line: str) -> None:
            found = re.search(r"ready on \w+ after ([0-9.]+) s", line)
            starts.extend([float(found[1])] if found else [])

        request = make_request(self.places, spec, version=self.version, tags={}, spender="bench")
        began_us, began = self.clock.now_us(), time.perf_counter()
        with open_mirror(self.places, clock=self.clock) as mirror:
            outcome = launch_sweep(
                self.places, request, version=self.version, ledger=self.ledger, clock=self.clock, ids=self.ids,
                leases=open_lease_queue(self.places, self.ledger, self.clock, self.ids), mirror=mirror, say=say,
            )  # fmt: skip
            swept = time.perf_counter() - began
            assert mirror.flush(timeout_seconds=300)
        assert not isinstance(outcome, Refusal), outcome.render_text()
        assert all(trial.state == "COMPLETE" for trial in outcome.trials), outcome.trials
        with self.ledger.read() as connection:
            attempts = sql_trials.list_attempts(connection, outcome.sweep_id)
        firsts = sorted(attempt.started_us for attempt in attempts)
        last = max(attempt.ended_us or 0 for attempt in attempts)
        return {
            "seconds": time.perf_counter() - began,
            "until_last_trial": swept,
            "group_start": max(starts, default=0.0),
            "first_trial": (firsts[0] - began_us) / 1e6,
            "trials": (last - firsts[0]) / 1e6,
            "busy": sum(attempt.busy_us for attempt in attempts) / 1e6,
        }

    @contextlib.contextmanager
    def ray(self, cpus: int):
        with connected(self.places, cpus=cpus):
            pass
        try:
            yield
        finally:
            stop_local(self.places)

    def peer(self, what: str, *, trials: int, cpus: int, seconds: float = 0.0) -> dict[str, float]:
        command = [sys.executable, str(ROOT / "benchmarks/sweep_peers.py"), what, str(self.folder)]
        plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}  # none of our Ray's
        done = subprocess.run(
            [*command, str(trials), str(cpus), str(seconds)],
            capture_output=True, text=True, check=False, env=plain, timeout=PEER_SECONDS,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return json.loads(done.stdout.strip().splitlines()[-1])

    def save_tensors(self) -> None:
        reader = ShardReader(self.version, self.places.cache / "shards")
        tensors = {}
        for split in ("train", "validation"):
            rows = reader.count_rows(split)
            batches = list(reader.batches(split, batch_size=rows, seed=0, epoch=0, rank=0, world_size=1, shuffle=False))
            tensors[f"{split}_image"] = torch.cat([batch.features["image"] for batch in batches])
            tensors[f"{split}_label"] = torch.cat([batch.label for batch in batches])
        torch.save(tensors, self.folder / "digits.pt")


def measure_overhead(bench: Bench, *, is_small: bool) -> list[Row]:
    """Trials that do nothing but sleep 50 ms, one after the other on one group of four workers."""
    trials = 40 if is_small else 200
    with bench.ray(4):
        ours = bench.launch(bench.spec(IDLE_SPEC, trials=trials, groups=1, workers=4, fixed={"seconds": SLEEP}))
    mine = 1000 * (ours["trials"] / trials - SLEEP)
    peer_trials = 16 if is_small else 60
    peer = bench.peer("reuse", trials=peer_trials, cpus=4, seconds=SLEEP)
    theirs = 1000 * (peer["seconds"] / peer_trials - SLEEP / 4)
    how = f"{trials} trials of {SLEEP} s sleep, one group of 4, MLflow logging; rival: Tune, reuse_actors, 4 at once"
    return [
        Row("overhead per trial, group of 4", mine, "ms", how, theirs, "at most 10", mine <= 10),
        Row(
            "overhead, Tune with reuse over ours", theirs / mine, "times", how, None, "at least 10", theirs >= 10 * mine
        ),
    ]


def time_plain(bench: Bench, *, trials: int, passes: int = PASSES) -> tuple[float, float]:
    """Pure training of all trials on two cores: two processes that begin together, and the shortest training."""
    command = [sys.executable, str(ROOT / "benchmarks/sweep_peers.py"), "plain", str(bench.folder), str(trials // 2)]
    runs = [
        subprocess.Popen([*command, str(passes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for run in runs:
        assert run.stdout is not None
        run.stdout.readline()
    found = [json.loads(run.communicate("go\n")[0].strip().splitlines()[-1]) for run in runs]
    return max(one["seconds"] for one in found), min(one["shortest"] for one in found)


def compare_pure(bench: Bench, *, trials: int, passes: int) -> tuple[dict[str, float], Row]:
    """A sweep on new groups, and one on those it left warm between two measurements of the same as plain torch."""
    spec = {"trials": trials, "fixed": {"width": 256, "passes": passes}}
    plain, shortest = time_plain(bench, trials=trials, passes=passes)
    with bench.ray(2):
        ours = bench.launch(bench.spec(DIGITS_SPEC, **spec))
        warm = bench.launch(bench.spec(DIGITS_SPEC, **spec))
    plain_again, _ = time_plain(bench, trials=trials, passes=passes)
    print({**ours, "warm": warm["seconds"], "plain": plain, "again": plain_again, "shortest": shortest})
    pure = (plain + plain_again) / 2
    ratio = warm["seconds"] / pure
    how = (
        f"{trials} trials of at least {shortest:.2f} s until MLflow has all; pure {pure:.2f} s (two warm plain torch "
        f"processes, before and after), ours {warm['seconds']:.2f} s on groups that the sweep before left warm"
    )
    name = "short trials over pure training" if passes == PASSES else "one-second trials over pure training"
    return ours, Row(name, ratio, "times", how, None, "at most 1.15", ratio <= 1.15)


def measure_digits(bench: Bench, *, is_small: bool) -> list[Row]:
    """64 short trainings on MNIST-5k on two cores, and as many of a second, which the rivals' figures leave out."""
    trials = 12 if is_small else 64
    bench.save_tensors()
    ours, over_pure = compare_pure(bench, trials=trials, passes=PASSES)
    _, longer = compare_pure(bench, trials=trials, passes=5 * PASSES)
    seconds = ours["seconds"]
    reuse = bench.peer("reuse", trials=trials, cpus=2)["seconds"]
    default = bench.peer("default", trials=trials if not is_small else 6, cpus=2)["seconds"] * (2 if is_small else 1)
    how = f"{trials} trials on 2 cores, Ray up, until MLflow has all; ours {seconds:.1f} s, group start and all"
    rows = [
        ("short trials, Tune default over ours", default, 20),
        ("short trials, Tune with reuse over ours", reuse, 4),
    ]
    return [
        *(
            Row(name, rival / seconds, "times", how, rival, f"at least {times}", rival >= times * seconds)
            for name, rival, times in rows
        ),
        over_pure,
        longer,
    ]


def measure_sleeping(bench: Bench, *, is_small: bool) -> list[Row]:
    """1,000 trials of one second on 16 logical CPUs, groups started before by another sweep."""
    trials = 96 if is_small else 1000
    floor = float(-(-trials // 16))
    common = {"groups": 16, "accelerators": "1xcpu", "idle": "120s", "lease_window": "300s"}
    with bench.ray(16):
        bench.launch(bench.spec(IDLE_SPEC, trials=16, fixed={"seconds": 45.0}, **common))  # until all groups are up
        ours = bench.launch(bench.spec(IDLE_SPEC, trials=trials, fixed={"seconds": 1.0}, **common))
    print(ours)
    over = 100 * (ours["until_last_trial"] / floor - 1)
    peer_trials = 96 if is_small else 320
    peer = bench.peer("reuse", trials=peer_trials, cpus=16, seconds=1.0)["seconds"]
    theirs = 100 * (peer / -(-peer_trials // 16) - 1)
    how = (
        f"{trials} trials of 1 s on 16 logical CPUs, {len(os.sched_getaffinity(0))} real ones; floor {floor:.0f} s; "
        f"on groups that an earlier sweep left warm; rival: Tune with reuse_actors, {peer_trials} trials, its start "
        "included; Tune's own figure is 14 %"
    )
    return [Row("sleeping trials over the floor", over, "%", how, theirs, "at most 5", over <= 5)]


def measure_succession(bench: Bench, *, is_small: bool) -> list[Row]:
    """Two sweeps, one after the other, on a running Ray: how long until the second one's first trial starts."""
    with bench.ray(2):
        first = bench.launch(bench.spec(DIGITS_SPEC, trials=4))
        warm = bench.launch(bench.spec(DIGITS_SPEC, trials=4))
        other = {"trials": 4, "workers": 2}  # no warm group fits, and together they hold the machine
        crowded = bench.launch(bench.spec(DIGITS_SPEC, groups=2, accelerators="0.5xcpu", **other))
        cold = bench.launch(bench.spec(DIGITS_SPEC, groups=1, accelerators="0.4xcpu", **other))
    print(first, warm, cold, crowded)
    how = "from the call of launch_sweep to the first attempt's row, libraries loaded, Ray running"
    shape = (
        how + "; a shape that no warm group fits, which are ended to make room; {} workers that import torch on 2 cores"
    )
    found = [
        ("warm groups", warm, 1, how),
        ("a new group of two workers", cold, 3, shape.format(2)),
        ("two new groups of two workers", crowded, 3, shape.format(4)),
    ]
    return [
        Row(
            f"second sweep, first trial on {kind}", taken["first_trial"], "s", text, None,
            f"at most {limit}", taken["first_trial"] <= limit,
        )
        for kind, taken, limit, text in found
    ]  # fmt: skip


def measure_memory(bench: Bench, *, is_small: bool) -> list[Row]:
    """10,000 trials through the driver with groups that do nothing: what stays in its memory."""
    made = runpy.run_path(str(ROOT / "tests/unit/training/conftest.py"), run_name="training_conftest")
    trials = 1_000 if is_small else 10_000
    folder = Path(tempfile.mkdtemp(dir=bench.folder))
    stage = made["Stage"](folder)
    process = psutil.Process()

    def grow(count: int, seed: int) -> float:
        crew = stage.crew()
        crew.log = _Forgetful()
        stage.mirror = _Nothing(stage.mirror)
        spec = stage.spec(trials=count, epochs=1, groups=4, seed=seed)
        peak = [0]
        take = crew.next_events

        def next_events(*, timeout_seconds: float):
            peak[0] = max(peak[0], process.memory_info().rss)
            return take(timeout_seconds=timeout_seconds)

        crew.next_events = next_events
        gc.collect()
        before = process.memory_info().rss
        stage.run(spec, crew)
        return (peak[0] - before) / 1000

    stage.request = _naming_each(stage.request)
    grow(50, 1)
    small = grow(trials // 10, 2)
    large = grow(trials, 3)
    stage.ledger.close()
    each = large / trials
    tenth = f"{small * 10 / trials:.1f} kB each with a tenth of them"
    how = f"resident memory of the driver over {trials} trials, random sampler, peak minus begin; {tenth}"
    return [Row("driver memory per trial", each, "kB", how, None, "less than 20", each < 20)]


class _Forgetful(list):
    def append(self, item) -> None:
        """The fake's log is not the driver's memory."""


class _Nothing:
    """Keeps nothing of what the mirror is told: MLflow's sender drops it too, once sent."""

    def __init__(self, inner) -> None:
        self._number = 0

    def start_sweep(self, *_, key: str, **__) -> str:
        return key

    def start_trial(self, *_, key: str, **__) -> str:
        return key

    def __getattr__(self, name: str):
        return lambda *_, **__: None


def _naming_each(make):
    """Each spec is a sweep of its own."""
    return lambda spec: replace(make(spec), inputs={"spec": digest_json(spec.to_json())})


PARTS = {
    "overhead": measure_overhead,
    "digits": measure_digits,
    "sleeping": measure_sleeping,
    "succession": measure_succession,
    "memory": measure_memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(PARTS), action="append")
    parser.add_argument("--small", action="store_true", help="A tenth of the trials; nothing is written.")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench-sweeps-") as scratch:
        bench = Bench(Path(scratch))
        try:
            for name in arguments.only or PARTS:
                rows += PARTS[name](bench, is_small=arguments.small)
        finally:
            bench.ledger.close()
            stop_local(bench.places)
    _write(rows, is_kept=not arguments.small)


def _write(rows: list[Row], *, is_kept: bool) -> None:
    """Parts that were not run keep their last figures."""
    path = RESULTS / "sweeps.json"
    fresh = {row.name for row in rows}
    old = json.loads(path.read_text()) if path.is_file() and is_kept else []
    kept = [Row(**entry) for entry in old if entry["name"] not in fresh]
    if is_kept:
        report("sweeps", [*rows, *kept])
    else:
        for row in rows:
            print(
                f"{row.name}: {row.ours:.3g} {row.unit}, rival {row.rival}, asked {row.asked}: {row.holds} ({row.how})"
            )


if __name__ == "__main__":
    main()
