"""Erasure: intake per second on SQLite, a thousand requests as one batch, one person out of a product to a clean one.

`--income` bakes and serves income first, which takes minutes; `--project FOLDER` takes one that serves.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from reporting import Row, merge, report

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from erasure_fakes import DATASET, ErasureWorld, make_erasure_world  # noqa: E402

from mlops.clock import SystemClock  # noqa: E402
from mlops.erasure.intake import PATH  # noqa: E402
from mlops.erasure.tickets import sign_ticket  # noqa: E402
from mlops.provenance.keys import make_key  # noqa: E402

REQUESTS, CLIENTS = 1_000, 16


def make_world(folder: Path) -> tuple[ErasureWorld, list[str]]:
    """A project of 2,000 people, and a signed request for each of the first thousand."""
    world = make_erasure_world(folder / "project", persons=2_000, rules={"window": "1d"})
    key = make_key(folder / "keys", "shop", clock=SystemClock())
    rules = {"version": 1, "tenants": {"shop": {"keys": [key.public], "per_minute": 100_000}}}
    (world.project.places.root / "deploy" / "erasure.yaml").write_text(yaml.safe_dump(rules))
    now_us = SystemClock().now_us()
    tickets = [
        sign_ticket(tenant="shop", dataset=DATASET, subject_id=f"p{n}", nonce=f"n{n}", issued_us=now_us, key=key)
        for n in range(REQUESTS)
    ]
    return world, tickets


def measure_intake(folder: Path, tickets: list[str]) -> float:
    """Signed requests a second over HTTP: `mlops erasure serve` in a process, clients that keep their connections.

    Each request is verified, fenced and recorded durably before it is answered.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = [sys.executable, "-m", "mlops.cli", "erasure", "serve", "--port", str(port)]
    server = subprocess.Popen(serve, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        wait_for(port)
        with ThreadPoolExecutor(CLIENTS) as clients:
            began = time.perf_counter()
            codes = set().union(*clients.map(lambda part: send_all(port, part), split(tickets)))
            seconds = time.perf_counter() - began
    finally:
        server.terminate()
        server.wait()
    assert codes == {202}, codes
    return len(tickets) / seconds


def split(tickets: list[str]) -> list[list[str]]:
    return [tickets[number::CLIENTS] for number in range(CLIENTS)]


def send_all(port: int, tickets: list[str]) -> set[int]:
    """One client: one connection, one request after the other."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    codes = set()
    for ticket in tickets:
        connection.request("POST", PATH, body=ticket)
        response = connection.getresponse()
        response.read()
        codes.add(response.status)
    connection.close()
    return codes


def wait_for(port: int) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("`mlops erasure serve` did not start")


def measure_single(world: ErasureWorld) -> float:
    """Requests a second, one after the other, each in a transaction of its own."""
    began = time.perf_counter()
    for number in range(200):
        world.ask(f"single-{number}")
    return 200 / (time.perf_counter() - began)


def measure_batch(world: ErasureWorld) -> tuple[float, int]:
    """Seconds of a batch without training and serving, and its retrains."""
    began = time.perf_counter()
    outcome = world.run()
    assert outcome.held is None, outcome.held
    return time.perf_counter() - began, len(world.work.retrains)


def run_mlops(folder: Path, *arguments: str, stdin: str = "") -> None:
    subprocess.run([sys.executable, "-m", "mlops.cli", *arguments], cwd=folder, input=stdin, text=True, check=True)


def serve_income(folder: Path) -> None:
    """Bake income in a clone of this tree, and let it serve in staging."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    (folder / ".mlops").mkdir(exist_ok=True)
    (folder / ".mlops" / "store").symlink_to(ROOT / ".mlops" / "store")
    run_mlops(folder, "release", "income")
    run_mlops(folder, "promote", "income@1", "--to", "staging")
    run_mlops(folder, "deploy", "reconcile", "staging")


def measure_income(folder: Path) -> float:
    """Seconds from a request to a clean model that serves, where income serves in staging."""
    person = f"adult.data:{random.randint(1, 30_000)}\n"
    began = time.perf_counter()
    run_mlops(folder, "erasure", "request", "income", stdin=person)
    run_mlops(folder, "erasure", "run", "income", "--now", "--reason", "benchmark")
    return time.perf_counter() - began


def measure_circle(project: Path | None) -> Row:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    with tempfile.TemporaryDirectory(prefix="erasure-") as scratch:
        folder = project or Path(scratch) / "project"
        try:
            if project is None:
                serve_income(folder)
            seconds = measure_income(folder)
        finally:
            if project is None:
                run_mlops(folder, "deploy", "stop", "staging")
            run_mlops(folder, "stop")
    how = "request, rewrite, retrain, gate, image, probe, promote, reconcile, purge, certificate on this machine"
    name = "one person out of income to a clean model"
    return Row(name, seconds, "s", how, asked="<= 180", holds=seconds <= 180)


def measure_batches() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="erasure-") as folder:
        world, tickets = make_world(Path(folder))
        rate = measure_intake(world.project.places.root, tickets)
        single = measure_single(world)
        seconds, retrains = measure_batch(world)
        world.project.ledger.close()
    how_sent = f"HTTP on loopback, {CLIENTS} connections, a server process, SQLite with synchronous=FULL"
    return [
        Row(
            "intake of signed requests", rate, "1/s", how_sent,
            rival=single, asked=">= 200", holds=rate >= 200,
        ),
        Row(
            "retrains for 1,000 people", float(retrains), "retrains", "one batch after 1,200 requests",
            asked="1", holds=retrains == 1,
        ),
        Row("batch of 1,200 requests without training", seconds, "s", "rewrite, commit, purge and certificate"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--income", action="store_true", help="also bake and serve income, and erase a person from it")
    parser.add_argument("--project", type=Path, help="only that, in a project in which income serves in staging")
    options = parser.parse_args()
    if options.project is not None:
        report("erasure", merge("erasure", [measure_circle(options.project)]))
        return
    rows = measure_batches()
    if options.income:
        rows.append(measure_circle(None))
    report("erasure", rows)


if __name__ == "__main__":
    main()
