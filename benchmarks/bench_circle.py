"""Promotion and rollback under load, with real images, podman (or bubblewrap), HAProxy and git.

Two tiny models are built into real serving images; wrk asks through the proxy all the time and notes, per answer, which
version gave it and when. The bar of 50 ms counts from starting the process `mlops rollback` to the last answer of the
version that was left. Chain verification and `mlops status` are timed on this project's own release, when it has one.

    python benchmarks/bench_circle.py [--project FOLDER] [--rounds 3] [--seconds 8]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reporting import Row, report

from mlops.deploy.desired_state import ServedVersion
from mlops.deploy.environment import EnvironmentSpec, load_environment
from mlops.deploy.instance_check import load_golden_cases
from mlops.deploy.promoting import approve, promote
from mlops.deploy.reconciler import stop_serving
from mlops.deploy.runtimes import choose_runtime
from mlops.errors import Refusal
from mlops.provenance.keys import load_key
from mlops.serving.image import ImageRequest, ImageSpec, build_image
from mlops.serving.testing import write_tiny_candidate

ROOT = Path(__file__).parents[1]
REQUESTS_ASKED = 20_000
LUA = """
local ffi = require("ffi")
ffi.cdef[[ typedef struct { long s; long n; } moment; int clock_gettime(int, moment *); ]]
local moment = ffi.new("moment")
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init(args)
  first_1, last_1, count_1, first_2, last_2, count_2, others = 0, 0, 0, 0, 0, 0, 0
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  local file = io.open(args[1]); wrk.body = file:read("*a"); file:close()
end
function response(status, headers, body)
  ffi.C.clock_gettime(0, moment)
  local now = tonumber(moment.s) * 1e6 + tonumber(moment.n) / 1e3
  local version = headers["x-model-version"]
  if status ~= 200 then others = others + 1
  elseif version == "1" then
    if count_1 == 0 then first_1 = now end
    last_1 = now; count_1 = count_1 + 1
  elseif version == "2" then
    if count_2 == 0 then first_2 = now end
    last_2 = now; count_2 = count_2 + 1
  else others = others + 1 end
end
function done(summary, latency, requests)
  local t = threads[1]
  local e = summary.errors
  print(string.format('RESULT {"requests":%d,"errors":%d,"first_1":%.0f,"last_1":%.0f,"count_1":%d,"first_2":%.0f,' ..
    '"last_2":%.0f,"count_2":%d,"others":%d,"p50_ms":%.3f,"p99_ms":%.3f,"max_ms":%.3f,"seconds":%.3f}',
    summary.requests, e.connect + e.read + e.write + e.status + e.timeout,
    t:get("first_1"), t:get("last_1"), t:get("count_1"),
    t:get("first_2"), t:get("last_2"), t:get("count_2"), t:get("others"),
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3, summary.duration / 1e6))
end
"""


@dataclass(frozen=True)
class Switch:
    """One rollback (or promotion) under load."""

    requests: int
    failed: int
    after_start_ms: float
    """Last answer of the version that was left, after the process was started."""
    after_first_line_ms: float
    """The same after Python had started and reached the command's first line."""
    after_switch_ms: float
    """The same after the proxy had confirmed."""
    p99_ms: float
    slowest_ms: float
    """The slowest single answer."""


def main() -> None:
    """Run everything and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--project", type=Path, default=ROOT)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args()
    fakes = load_fakes()
    promotions, rollbacks, records = [], [], []
    with tempfile.TemporaryDirectory(prefix="bench-circle-") as scratch, fakes.make_world(Path(scratch)) as world:
        world = prepare(world, fakes)
        try:
            for _ in range(arguments.rounds):
                promotions.append(measure_promotion(world, arguments.seconds))
                switch, seconds = measure_rollback(world, arguments.seconds)
                rollbacks.append(switch)
                records.append(seconds)
                print(f"rollback: {switch.after_start_ms:.1f} ms after the start, slowest {switch.slowest_ms:.1f} ms")
        finally:
            list(stop_serving(world.reconciler()))
        runtime = world.runtime.name
    report("circle", [*rows_of(promotions, rollbacks, records, runtime), *measure_project(arguments.project)])


def load_fakes() -> Any:
    """Tests and this benchmark share how to make a released version without training one."""
    spec = importlib.util.spec_from_file_location("deploy_fakes", ROOT / "tests" / "deploy_fakes.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["deploy_fakes"] = module
    spec.loader.exec_module(module)
    return module


def prepare(world: Any, fakes: Any) -> Any:
    """Two released versions with real images, version 1 serving."""
    port = fakes.free_port()
    world.write(
        "deploy/environments/production.yaml",
        "version: 1\nname: production\napprovals: {needed: 0}\n"
        f"traffic: {{ports: {{income: {port}}}, steps: [10, 50, 100], step_wait: 0.5s}}\n",
    )
    world.add_person("ada")
    world.commit("Rules")
    rules: EnvironmentSpec = load_environment(world.site.places, "production")
    runtime = choose_runtime(rules.runtimes, state=world.site.places.serving_state)
    world = fakes.World(world.site, rules, runtime)
    for number in (1, 2):
        world.release(
            number,
            write_candidate=lambda folder, seed=number: write_tiny_candidate(folder, seed=seed),
            build=lambda folder, number=number: build_real(world, folder, number),
        )
    move(world, 1)
    return world


def build_real(world: Any, folder: Path, number: int) -> str:
    """The candidate in a real serving image."""
    places = world.site.places
    request = ImageRequest(
        candidate_folder=folder, product="income", version=str(number), evidence={}, spec=ImageSpec(),
        layout=places.images, downloads=ROOT / ".mlops" / "store", cache=places.cache,
    )  # fmt: skip
    return build_image(request).digest


def move(world: Any, number: int) -> None:
    """Promote and reconcile; what failed before needs a person first."""
    rules, site = world.rules, world.site
    approve(site, rules, f"income@{number}", key=load_key(site.places.keys_folder, "ada-0"), reason="again")
    result = promote(site, rules, f"income@{number}")
    if isinstance(result, Refusal):
        raise SystemExit(result.render_text())
    outcome = world.reconciler(golden=golden_of(world)).run_once()
    if isinstance(outcome, Refusal) or outcome.reasons:
        raise SystemExit(str(outcome))


def golden_of(world: Any) -> Any:
    """Golden cases of the judged candidates."""
    return lambda product, version: load_golden_cases(world.site.places, product, version)


class Load:
    """wrk in the background."""

    def __init__(self, world: Any, seconds: float) -> None:
        folder = world.root.parent
        body = load_golden_cases(world.site.places, "income", first_version(world))[0].body
        (folder / "body.json").write_bytes(body)
        (folder / "load.lua").write_text(LUA)
        url = f"http://127.0.0.1:{world.rules.traffic.ports['income']}/v2/models/income/infer"
        command = ["wrk", "-t1", "-c8", f"-d{round(seconds)}s", "--latency", "-s", str(folder / "load.lua"), url]
        self._process = subprocess.Popen([*command, "--", str(folder / "body.json")], stdout=subprocess.PIPE, text=True)

    def result(self) -> dict[str, float]:
        """Wait for its end."""
        text = self._process.communicate()[0]
        line = next(line for line in text.split("\n") if line.startswith("RESULT "))
        found: dict[str, float] = json.loads(line.removeprefix("RESULT "))
        return found


def first_version(world: Any) -> ServedVersion:
    """Version 1 as the golden requests need it; the contract is the same for both."""
    from mlops.deploy.promotion_facts import find_release

    with world.site.ledger.read() as connection:
        release = find_release(connection, "income@1")
    return ServedVersion(release.number, release.image, release.candidate, 100)


def measure_promotion(world: Any, seconds: float) -> Switch:
    """From version 1 to version 2 in steps of 10, 50 and 100 %."""
    load = Load(world, seconds + 6)
    time.sleep(1)
    started_ns = time.time_ns()
    move(world, 2)
    ended_ns = time.time_ns()
    found = load.result()
    return to_switch(found, left="1", started_ns=started_ns, begun_ns=started_ns, switched_ns=ended_ns)


def measure_rollback(world: Any, seconds: float) -> tuple[Switch, float]:
    """`mlops rollback production` as a person types it; also the seconds until it had ended (git included)."""
    load = Load(world, seconds)
    time.sleep(min(3.0, seconds / 2))
    command = [str(Path(sys.executable).with_name("mlops")), "rollback", "production", "--json", "--reason", "bench"]
    started_ns = time.time_ns()
    done = subprocess.run(command, cwd=world.root, capture_output=True, text=True, check=False)
    ended_seconds = (time.time_ns() - started_ns) / 1e9
    if done.returncode:
        raise SystemExit(done.stderr)
    told = json.loads(done.stdout)
    moments = {"started_ns": started_ns, "begun_ns": told["begun_ns"], "switched_ns": told["switched_ns"]}
    switch = to_switch(load.result(), left="2", **moments)
    return switch, ended_seconds


def to_switch(found: dict[str, float], *, left: str, started_ns: int, begun_ns: int, switched_ns: int) -> Switch:
    """wrk's numbers to what is reported."""
    last_us = found[f"last_{left}"]
    return Switch(
        requests=int(found["requests"]),
        failed=int(found["errors"] + found["others"]),
        after_start_ms=last_us / 1e3 - started_ns / 1e6,
        after_first_line_ms=last_us / 1e3 - begun_ns / 1e6,
        after_switch_ms=last_us / 1e3 - switched_ns / 1e6,
        p99_ms=found["p99_ms"],
        slowest_ms=found["max_ms"],
    )


def rows_of(promotions: list[Switch], rollbacks: list[Switch], records: list[float], runtime: str) -> list[Row]:
    """What was measured, beside what was asked."""
    requests = sum(switch.requests for switch in [*promotions, *rollbacks])
    failed_forward = sum(switch.failed for switch in promotions)
    failed_back = sum(switch.failed for switch in rollbacks)
    after_start = [switch.after_start_ms for switch in rollbacks]
    first_line = [switch.after_first_line_ms for switch in rollbacks]
    after_switch = [switch.after_switch_ms for switch in rollbacks]
    rounds = f"{len(rollbacks)} rounds, {runtime}, wrk -t1 -c8 on the same {os.cpu_count()} cores"
    return [
        Row("requests under load", requests, "requests", rounds, asked=f">= {REQUESTS_ASKED}",
            holds=requests >= REQUESTS_ASKED),
        Row("failed requests, promotions", failed_forward, "requests", rounds, asked="0", holds=failed_forward == 0),
        Row("failed requests, rollbacks", failed_back, "requests", rounds, asked="0", holds=failed_back == 0),
        Row("last bad answer after the command's start, median", statistics.median(after_start), "ms",
            f"{rounds}; from exec of `mlops rollback` to the last answer of the version left",
            asked="<= 50", holds=statistics.median(after_start) <= 50),
        Row("last bad answer after the command's start, worst", max(after_start), "ms", rounds, asked="<= 50",
            holds=max(after_start) <= 50),
        Row("last bad answer after the command's first line, worst", max(first_line), "ms",
            "the rest is the start of Python, which competes with wrk, proxy and servers for the cores",
            asked="<= 50", holds=max(first_line) <= 50),
        Row("last bad answer after the proxy confirmed, worst", max(after_switch), "ms",
            "negative: the last one was answered before the confirmation was read"),
        Row("rollback command until git and reconcile are done, median", statistics.median(records), "s", rounds),
        Row("slowest single answer during a rollback", max(switch.slowest_ms for switch in rollbacks), "ms", rounds),
        Row("p99 during rollback, worst", max(switch.p99_ms for switch in rollbacks), "ms", rounds),
    ]  # fmt: skip


def measure_project(project: Path) -> list[Row]:
    """Chain verification and `mlops status` on a real release."""
    rows = []
    for name, arguments, limit in (
        ("chain verification (mlops audit verify income@latest)", ("audit", "verify", "income@latest"), 2.0),
        ("mlops status", ("status",), 1.0),
    ):
        seconds: list[float] = []
        for _ in range(5):
            started = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-P", "-m", "mlops.cli", *arguments], cwd=project,
                env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                text = (done.stderr or done.stdout).strip().split("\n")[0]
                rows.append(
                    Row(name, None, "s", f"not measured: {text} (run `make release` first)", asked=f"<= {limit:g}")
                )
                break
            seconds.append(time.monotonic() - started)
        else:
            median = statistics.median(seconds)
            rows.append(
                Row(name, median, "s", "median of 5 whole commands", asked=f"<= {limit:g}", holds=median <= limit)
            )
    return rows


if __name__ == "__main__":
    main()
