"""Our serving image against MLServer and kserve's server, side by side in one run: `make bench-serving`.

Every server runs on the first core with one thread for the model, wrk on the second; rounds are interleaved, the best
of each is taken. Errors count: a run with any answer other than 200 is refused.
Writes benchmarks/results/serving.json. Leaves to others: correctness (tests/*/serving).
"""

import argparse
import contextlib
import http.client
import json
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import psutil
from reporting import Row, report

from mlops.serving.golden import GoldenRequest, make_golden_requests
from mlops.serving.image import ImageRequest, ImageSpec, build_image
from mlops.serving.inventory import take_inventory
from mlops.serving.runtime import RunRequest
from mlops.serving.runtime_process import ProcessRuntime
from mlops.serving.testing import TINY_COLUMNS, tiny_contract, write_tiny_candidate

ROOT = Path(__file__).resolve().parents[1]
PEERS = {
    "MLServer": (".venv-bench-serving", ("mlserver==1.7.1", "onnxruntime==1.32.0")),
    "kserve": (".venv-bench-serving-kserve", ("kserve==0.21.0", "onnxruntime==1.32.0", "tritonclient[http]==2.73.0")),
}
CONTRACT = tiny_contract(columns=[column for column in TINY_COLUMNS if not column.shape])
CONNECTIONS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of each round")
    parser.add_argument("--soak", type=int, default=120, help="seconds at half load")
    parser.add_argument("--rate", type=int, default=200, help="requests a second in the open loop")
    parser.add_argument("--soak-only", action="store_true", help="no peers, no comparison")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    given = parser.parse_args()
    if given.soak_only:
        given.peers, given.rounds = [], 1
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: apt-get install wrk")
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as folder:
        rows = measure(Path(folder), given)
    report("serving-soak" if given.soak_only else "serving", rows)


def measure(folder: Path, given: argparse.Namespace) -> list[Row]:
    rows, request, digest = measure_builds(folder)
    bodies = {1: write_body(folder, 1), 32: write_body(folder, 32)}
    with contextlib.ExitStack() as stack:
        ours, instance = stack.enter_context(start_ours(folder, request, digest))
        rows.append(instance["start"])
        servers = {"ours": ours}
        for name in given.peers:
            servers[name] = stack.enter_context(start_peer(folder, name))
        found = {(name, size): best_of([]) for name in servers for size in bodies}
        for _ in range(given.rounds):
            for size, body in bodies.items():
                for name, (url, pid) in servers.items():
                    others = [other for key, (_, other) in servers.items() if key != name]
                    found[name, size] = best_of(
                        [found[name, size], load(url, body, seconds=given.seconds, pid=pid, paused=others)]
                    )
        rows += compare(found, given.peers)
        if "kserve" in given.peers:
            rows.append(check_clients(ours[0]))
        rows += compare_open_loop(servers, rate=given.rate, seconds=given.seconds)
        if given.soak:
            rows += soak(*ours, bodies[1], rate_share=0.5, most=found["ours", 1]["rate"], seconds=given.soak)
    return rows


def measure_builds(folder: Path) -> tuple[list[Row], ImageRequest, str]:
    write_tiny_candidate(folder / "candidate", contract=CONTRACT, width=128)
    request = ImageRequest(
        candidate_folder=folder / "candidate",
        product="income",
        version="1",
        evidence={"candidate": "sha256:" + "0" * 64},
        spec=ImageSpec(),
        layout=folder / "warm-up",
        downloads=ROOT / ".mlops" / "store",
        cache=folder / "cache-warm-up",
    )
    build_image(request)  # fills the content store
    request = replace(request, layout=folder / "images", cache=folder / "cache")
    started, used = time.perf_counter(), time.process_time()
    built = build_image(request)
    full, used = time.perf_counter() - started, time.process_time() - used
    write_tiny_candidate(folder / "candidate-2", contract=CONTRACT, width=128, seed=1)
    started = time.perf_counter()
    build_image(replace(request, candidate_folder=folder / "candidate-2", version="2"))
    model_only = time.perf_counter() - started
    inventory = take_inventory(request.layout, built.digest)
    distributions = sum(package.kind == "pypi" for package in inventory.packages)
    how = "tiny model over five columns; the base and runtime layers are those of income"
    return (
        [
            figure(
                "image, compressed",
                built.compressed_bytes / 1e6,
                900,
                80,
                "MB",
                f"{how}; rival: mlflow's smallest as reported",
            ),
            figure(
                "Python distributions in the image",
                distributions,
                69,
                20,
                "distributions",
                "rival: MLServer's environment",
            ),
            figure(
                "build, warm store, no layer there yet",
                full,
                5.7,
                5,
                "s",
                f"{how}; {used:.1f} s of processor time on two threads; rival: buildah, measured before",
            ),
            figure("build, only the model changed", model_only, None, 0.5, "s", how),
        ],
        request,
        built.digest,
    )


@contextlib.contextmanager
def start_ours(folder: Path, request: ImageRequest, digest: str):
    runtime = ProcessRuntime(folder / "process")
    port = free_port()
    sockets = Path(tempfile.mkdtemp(prefix="bench-"))
    run = RunRequest(name="bench", layout=request.layout, digest=digest, socket_folder=sockets, tcp_port=port)
    runtime.stop(runtime.start(run), timeout_seconds=10)  # unpacks
    url = f"http://127.0.0.1:{port}"
    started = time.perf_counter()
    instance = runtime.start(run)
    wait_for(f"{url}/v2/health/ready")
    seconds = time.perf_counter() - started
    pid = int(instance.identity.partition(":")[0])
    pin(pid)
    row = figure(
        "start of the unpacked image to the first answer",
        seconds,
        2.6,
        1,
        "s",
        "plain process runtime; rival: MLServer as a process",
    )
    try:
        yield (f"{url}/v2/models/income/infer", pid), {"start": row}
    finally:
        runtime.stop(instance, timeout_seconds=10)
        shutil.rmtree(sockets, ignore_errors=True)


@contextlib.contextmanager
def start_peer(folder: Path, name: str):
    python = prepare_environment(name)
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks"), "OMP_NUM_THREADS": "1"}
    if name == "MLServer":
        place = folder / "mlserver"
        place.mkdir()
        other, third = free_port(), free_port()
        settings = {
            "http_port": port,
            "grpc_port": other,
            "metrics_port": third,
            "parallel_workers": 0,
            "debug": False,
            "host": "127.0.0.1",
        }
        (place / "settings.json").write_text(json.dumps(settings))
        model = {
            "name": "income",
            "implementation": "serving_peers.OnnxModel",
            "parameters": {"uri": str(folder / "candidate")},
        }
        (place / "model-settings.json").write_text(json.dumps(model))
        command = [str(python.with_name("mlserver")), "start", str(place)]
    else:
        command = [
            str(python),
            str(ROOT / "benchmarks/serving_peers.py"),
            "kserve",
            str(folder / "candidate"),
            str(port),
        ]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/v2/models/income", log=folder / f"{name}.log")
        pin(process.pid)
        yield f"http://127.0.0.1:{port}/v2/models/income/infer", process.pid
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
        process.kill()


def prepare_environment(name: str) -> Path:
    place, packages = PEERS[name]
    python = ROOT / place / "bin/python"
    needed = (*(["tritonclient.http"] if "tritonclient" in str(packages) else []), name.lower(), "onnxruntime")
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(ROOT / place)], check=True)
    if subprocess.run([python, "-c", f"import {', '.join(needed)}"], capture_output=True, check=False).returncode:
        print(f"installing {', '.join(packages)} into {place}", file=sys.stderr)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def write_body(folder: Path, rows: int) -> Path:
    golden = next(item for item in make_golden_requests(CONTRACT) if item.rows == 1)
    body = GoldenRequest(
        golden.name, rows, {name: list(values) * rows for name, values in golden.columns.items()}, golden.is_raw
    )
    path = folder / f"body-{rows}.lua"
    text = json.dumps(body.to_inference_request(CONTRACT))
    path.write_text(
        f'wrk.method = "POST"\nwrk.headers["content-type"] = "application/json"\nwrk.body = [==[{text}]==]\n'
    )
    return path


def load(url: str, body: Path, *, seconds: int, pid: int, paused: list[int]) -> dict[str, float]:
    for other in paused:
        psutil.Process(other).suspend()
    try:
        before = sum(psutil.Process(pid).cpu_times()[:2])
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}", "--latency", "-s", str(body), url]
        if os.cpu_count() != 1:
            command = ["taskset", "-c", str(os.cpu_count() - 1), *command]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        cpu = sum(psutil.Process(pid).cpu_times()[:2]) - before
    finally:
        for other in paused:
            psutil.Process(other).resume()
    if "Non-2xx" in shown or "Socket errors" in shown:
        sys.exit(f"{url} answered with errors:\n{shown}")
    count = int(re.search(r"(\d+) requests in", shown)[1])
    return {
        "rate": float(re.search(r"Requests/sec:\s+([\d.]+)", shown)[1]),
        "p50_ms": milliseconds(re.search(r"^ +50% +(\S+)$", shown, re.MULTILINE)[1]),
        "p99_ms": milliseconds(re.search(r"^ +99% +(\S+)$", shown, re.MULTILINE)[1]),
        "cpu_us": cpu / count * 1e6,
    }


def best_of(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Best rate, latencies and CPU; the machine is shared."""
    used = [item for item in rounds if item]
    if not used:
        return {}
    lowest = {name: min(item[name] for item in used) for name in ("p50_ms", "p99_ms", "cpu_us")}
    return {"rate": max(item["rate"] for item in used), **lowest}


def compare(found: dict, peers: list[str]) -> list[Row]:
    rows = []
    for name in peers:
        mine, theirs = found["ours", 1], found[name, 1]
        asked = 4 if name == "MLServer" else None
        how = (
            f"{CONNECTIONS} connections, closed loop, one row, ours {mine['rate']:.0f}/s, {name} {theirs['rate']:.0f}/s"
        )
        rows.append(figure(f"throughput against {name}", mine["rate"] / theirs["rate"], 1, asked, "times", how))
        how = (
            f"same load; ours {mine['p50_ms']:.2f} ms (99 %: {mine['p99_ms']:.2f}), "
            f"{name} {theirs['p50_ms']:.2f} ms (99 %: {theirs['p99_ms']:.2f})"
        )
        asked = 1 / 3 if name == "MLServer" else None
        rows.append(
            figure(
                f"median latency against {name}",
                mine["p50_ms"] / theirs["p50_ms"],
                1,
                asked,
                "of the rival's",
                how,
            )
        )
        how = f"CPU time of the server per request; ours {mine['cpu_us']:.0f} us, {name} {theirs['cpu_us']:.0f} us"
        rows.append(
            figure(f"processor time against {name}", mine["cpu_us"] / theirs["cpu_us"], 1, None, "of the rival's", how)
        )
        mine, theirs = found["ours", 32], found[name, 32]
        how = f"requests of 32 rows; ours {mine['rate']:.0f}/s, {name} {theirs['rate']:.0f}/s"
        asked = 2 if name == "MLServer" else None
        rows.append(figure(f"batches of 32 against {name}", mine["rate"] / theirs["rate"], 1, asked, "times", how))
    return rows


def check_clients(url: str) -> Row:
    """kserve's and tritonclient's own clients, JSON and binary, in kserve's environment."""
    python = prepare_environment("kserve")
    golden = next(item for item in make_golden_requests(CONTRACT) if item.is_raw)
    request = json.dumps(golden.to_inference_request(CONTRACT))
    script = str(ROOT / "benchmarks/serving_clients.py")
    address = url.split("/")[2]
    done = subprocess.run(
        [python, script, address, CONTRACT.product, request], capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode:
        sys.exit(f"a client of the protocol is not served:\n{done.stderr[-3000:]}")
    ways = done.stdout.splitlines()
    how = "in JSON and in binary tensors, with health, metadata and a refusal: " + "; ".join(ways)
    return Row(
        name="kserve's and tritonclient's own clients that pass", ours=len(ways), unit="of 4 ways", how=how,
        asked="at least 4", holds=len(ways) >= 4,
    )  # fmt: skip


def compare_open_loop(servers: dict[str, tuple[str, int]], *, rate: int, seconds: int) -> list[Row]:
    """Requests sent by the clock, whether or not the earlier ones were answered; late ones wait in the figures."""
    found = {}
    for name, (url, _) in servers.items():
        others = [pid for key, (_, pid) in servers.items() if key != name]
        for other in others:
            psutil.Process(other).suspend()
        try:
            found[name] = open_loop(url, rate=rate, seconds=seconds)
        finally:
            for other in others:
                psutil.Process(other).resume()
    rows = []
    for name in [name for name in servers if name != "ours"]:
        mine, theirs = found["ours"], found[name]
        how = (
            f"{rate} single rows a second, sent by the clock for {seconds} s; ours {mine['p50_ms']:.2f} ms "
            f"(99 %: {mine['p99_ms']:.2f}), {mine['errors']:.0f} errors; {name} {theirs['p50_ms']:.2f} ms "
            f"(99 %: {theirs['p99_ms']:.2f}), {theirs['errors']:.0f} errors"
        )
        ratio = mine["p50_ms"] / theirs["p50_ms"]
        rows.append(figure(f"open loop: median latency against {name}", ratio, 1, None, "of the rival's", how))
    return rows


def open_loop(url: str, *, rate: int, seconds: int) -> dict[str, float]:
    """Latencies counted from when each request was due."""
    body = json.dumps(
        next(item for item in make_golden_requests(CONTRACT) if item.rows == 1).to_inference_request(CONTRACT)
    ).encode()
    late = queue.Queue()
    due = [index / rate for index in range(rate * seconds)]
    for item in due:
        late.put(item)
    address, path = url.split("/", 3)[2], "/" + url.split("/", 3)[3]
    latencies, errors = [], []
    started = time.perf_counter() + 0.1

    def work() -> None:
        connection = http.client.HTTPConnection(address, timeout=30)
        while True:
            try:
                item = late.get_nowait()
            except queue.Empty:
                return
            time.sleep(max(0.0, started + item - time.perf_counter()))
            try:
                connection.request("POST", path, body=body, headers={"content-type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    errors.append(str(answer.status))
            except (OSError, http.client.HTTPException) as error:
                errors.append(str(error))
                connection.close()
            latencies.append(time.perf_counter() - started - item)

    workers = [threading.Thread(target=work) for _ in range(CONNECTIONS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    latencies.sort()
    return {
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[len(latencies) * 99 // 100] * 1e3,
        "errors": len(errors),
    }


def soak(url: str, pid: int, body: Path, *, rate_share: float, most: float, seconds: int) -> list[Row]:
    """Half load: wrk on a share of the time, second by second; memory at the start and at the end."""
    process = psutil.Process(pid)
    load(url, body, seconds=2, pid=pid, paused=[])
    first = process.memory_info().rss
    ends = time.monotonic() + seconds
    answered = 0.0
    while time.monotonic() < ends:
        answered += load(url, body, seconds=1, pid=pid, paused=[])["rate"]
        time.sleep(1 / rate_share - 1)
    last = process.memory_info().rss
    how = (
        f"{answered:.0f} answers in {seconds} s at half of {most:.0f}/s, no error; "
        f"{first / 1e6:.1f} MB, then {last / 1e6:.1f} MB"
    )
    return [figure("soak: growth of memory", (last - first) / first * 100, None, 5, "%", how)]


def figure(name: str, ours: float, rival: float | None, bound: float | None, unit: str, how: str) -> Row:
    """A row; only ratios of throughput (`times`) are bounded from below."""
    is_floor = unit == "times"
    holds = None if bound is None else (ours >= bound if is_floor else ours <= bound)
    asked = None if bound is None else f"{'at least' if is_floor else 'at most'} {bound:.3g}"
    return Row(name=name, ours=ours, unit=unit, how=how, rival=rival, asked=asked, holds=holds)


def milliseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def pin(pid: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setaffinity(pid, {0})
        for thread in psutil.Process(pid).threads():
            os.sched_setaffinity(thread.id, {0})


def wait_for(url: str, *, seconds: float = 60, log: Path | None = None) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.01)
    sys.exit(f"{url} does not answer\n{log.read_text()[-3000:] if log else ''}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
