"""Erasure: intake per second on SQLite, a thousand requests as one batch, one person out of a product to a clean one.

`--income` bakes and serves income first, which takes minutes.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from reporting import Row, report

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


def measure_income() -> float:
    """Seconds from a request to a clean model of income that serves in staging, in a clone of this tree."""
    with tempfile.TemporaryDirectory(prefix="erasure-") as scratch:
        folder = Path(scratch) / "project"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
        (folder / ".mlops").mkdir(exist_ok=True)
        (folder / ".mlops" / "store").symlink_to(ROOT / ".mlops" / "store")
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        try:
            run_mlops(folder, "release", "income")
            run_mlops(folder, "promote", "income@1", "--to", "staging")
            run_mlops(folder, "deploy", "reconcile", "staging")
            began = time.perf_counter()
            run_mlops(folder, "erasure", "request", "income", stdin="adult.data:7\n")
            run_mlops(folder, "erasure", "run", "income")
            return time.perf_counter() - began
        finally:
            run_mlops(folder, "deploy", "stop", "staging")
            run_mlops(folder, "stop")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="erasure-") as folder:
        world, tickets = make_world(Path(folder))
        rate = measure_intake(world.project.places.root, tickets)
        single = measure_single(world)
        seconds, retrains = measure_batch(world)
        world.project.ledger.close()
    how_sent = f"HTTP on loopback, {CLIENTS} connections, a server process, SQLite with synchronous=FULL"
    rows = [
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
    if "--income" in sys.argv:
        circle = measure_income()
        how = "request, rewrite, retrain, gate, image, probe, promote, reconcile, purge, certificate on this machine"
        rows.append(
            Row("one person out of income to a clean model", circle, "s", how, asked="<= 180", holds=circle <= 180)
        )
    report("erasure", rows)


if __name__ == "__main__":
    main()
