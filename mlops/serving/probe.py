"""Trying out the actual image: boot it without network, ask it what the judged model was asked, ill-treat it, stop it.

The result is evidence for promotion: it says what was observed, and passes only when nothing is left to complain about.
Leaves to others: how an image is started (a `Runtime`), what an environment makes of the result (mlops/deploy).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlops.clock import Clock, render_time
from mlops.errors import Reason, ServingError
from mlops.provenance.digest import digest_json
from mlops.serving.fuzzing import fuzz_api
from mlops.serving.golden import GoldenRequest, answer_golden, make_golden_requests
from mlops.serving.malformed import MalformedRequest, make_broken_connections, make_malformed_requests
from mlops.serving.oci_layout import ImageLayout
from mlops.serving.probe_process import judge_process, observe_process
from mlops.serving.probe_scratch import name_instance, probe_scratch, stop_left_over
from mlops.serving.runtime import Instance, RunRequest, Runtime
from mlops.serving.socket_client import HttpAnswer, SocketClient, talk
from mlops.training.contract import Contract, load_contract

PASS, FAIL = "PASS", "FAIL"
_PATIENCE_SECONDS = 1
"""Given to the server for a request to arrive, so that slow clients cost the probe little."""


@dataclass(frozen=True)
class ProbeLimits:
    """What the probe asks of an image."""

    start_seconds: float = 20.0
    """From start to the first `ready`."""
    absolute_tolerance: float = 1e-5
    relative_tolerance: float = 1e-4
    """Between the image's answers and the judged model's, per number."""
    latency_requests: int = 200
    """Single-row requests, one after the other."""
    latency_p99_seconds: float = 0.25
    memory_bytes: int = 512 << 20
    """Given to the runtime as a limit, and checked where the runtime's process can be read."""
    cpus: float = 1.0
    """Cores, given to the runtime as a limit; `facts` says which limits the process was found under."""
    fuzz_examples: int = 20
    """Per operation of the OpenAPI document, once allowed and once forbidden ones."""
    drain_seconds: float = 15.0
    """From SIGTERM to the end."""


@dataclass(frozen=True)
class ProbeRequest:
    """One image to try out."""

    layout: Path
    digest: str
    candidate_folder: Path
    """The judged candidate: its artefact says what the image must answer."""
    clock: Clock
    limits: ProbeLimits = field(default_factory=ProbeLimits)


@dataclass(frozen=True)
class ProbeResult:
    """What was observed."""

    image: str
    runtime: str
    product: str
    started_us: int
    verdict: str
    """`PASS` or `FAIL`."""
    reasons: tuple[Reason, ...]
    """Every ground for FAIL."""
    facts: dict[str, Any]
    """Seconds to ready, latencies, bytes of memory, requests made, exit code."""

    @property
    def is_go(self) -> bool:
        """Whether the image may be promoted, as far as the probe is concerned."""
        return self.verdict == PASS

    def to_json(self) -> dict[str, Any]:
        """For evidence and people."""
        return {
            "version": 1,
            "image": self.image,
            "runtime": self.runtime,
            "product": self.product,
            "started": render_time(self.started_us),
            "verdict": self.verdict,
            "reasons": [asdict(reason) for reason in self.reasons],
            "facts": self.facts,
        }

    @property
    def digest(self) -> str:
        """Of the result's JSON."""
        return digest_json(self.to_json())


def probe_image(request: ProbeRequest, *, runtime: Runtime) -> ProbeResult:
    """Boot the image with nothing but a Unix socket, and try it out.

    Raises:
        ServingError: The image or the candidate cannot be read.
        EnvironmentFault: The runtime does not work on this machine.
    """
    contract = load_contract(request.candidate_folder / "contract.json")
    golden = make_golden_requests(contract)
    answers = answer_golden(request.candidate_folder, golden, contract=contract)
    ImageLayout(request.layout).read_manifest(request.digest)
    started_us = request.clock.now_us()
    stop_left_over(runtime)
    with probe_scratch() as sockets:
        instance = runtime.start(
            RunRequest(
                name=name_instance(sockets, digest=request.digest),
                layout=request.layout,
                digest=request.digest,
                socket_folder=sockets,
                tcp_port=None,
                memory_bytes=request.limits.memory_bytes,
                cpus=request.limits.cpus,
                environment={"REQUEST_LOG": "none", "BODY_TIMEOUT_SECONDS": str(_PATIENCE_SECONDS)},
            )
        )
        trial = _Trial(request=request, runtime=runtime, instance=instance, contract=contract)
        trial.run(golden, answers)
    return ProbeResult(
        image=request.digest,
        runtime=runtime.name,
        product=contract.product,
        started_us=started_us,
        verdict=FAIL if trial.reasons else PASS,
        reasons=tuple(trial.reasons),
        facts=trial.facts,
    )


class _Trial:
    """One running image and what was found wrong with it."""

    def __init__(self, *, request: ProbeRequest, runtime: Runtime, instance: Instance, contract: Contract) -> None:
        self._limits = request.limits
        self._runtime = runtime
        self._instance = instance
        self._contract = contract
        self._path = f"/v2/models/{contract.product}/infer"
        self.reasons: list[Reason] = []
        self.facts: dict[str, Any] = {}

    def run(self, golden: Sequence[GoldenRequest], answers: Sequence[dict[str, Any]]) -> None:
        try:
            if self._wait_until_ready():
                self._replay(golden, answers)
                self._mistreat(golden[0])
                self._break_connections()
                self._fuzz()
                self._measure(golden[0])
                self._measure_memory()
                self._observe()
                self._require_alive()
        finally:
            self._drain()

    def _complain(self, code: str, text: str) -> None:
        self.reasons.append(Reason(code=code, text=text))

    def _ask(self, method: str, path: str, *, body: bytes = b"", headers: dict[str, str] | None = None) -> HttpAnswer:
        with SocketClient(self._instance.socket, timeout_seconds=30) as client:
            return client.ask(method, path, body=body, headers=headers or {})

    def _wait_until_ready(self) -> bool:
        started = time.monotonic()
        while time.monotonic() - started < self._limits.start_seconds:
            try:
                if self._ask("GET", "/v2/health/ready").status == 200:
                    self.facts["ready_seconds"] = round(time.monotonic() - started, 3)
                    return True
            except ServingError:
                if not self._runtime.is_running(self._instance):
                    break
            time.sleep(0.01)
        last = self._runtime.logs(self._instance).strip().splitlines()[-3:]
        self._complain(
            "not-ready", f"no answer after {self._limits.start_seconds:g} s; its log ends: {' | '.join(last)}"
        )
        return False

    def _replay(self, golden: Sequence[GoldenRequest], answers: Sequence[dict[str, Any]]) -> None:
        worst = 0.0
        for request, expected in zip(golden, answers, strict=True):
            answer = self._ask_json(self._path, request.to_inference_request(self._contract))
            if answer.status != 200:
                self._complain("golden-refused", f"{request.name}: status {answer.status}: {answer.text[:200]}")
                continue
            found = {output["name"]: output["data"] for output in answer.json()["outputs"]}
            for name, rows in expected.items():
                difference, is_close = self._compare(_flat(rows), _flat(found.get(name, [])))
                worst = max(worst, difference)
                if not is_close:
                    self._complain(
                        "golden-differs",
                        f"{request.name}: {name} differs by up to {difference:.3g} from what the judged model answers",
                    )
        self.facts["golden_requests"] = len(golden)
        self.facts["golden_max_difference"] = worst

    def _compare(self, expected: list[float], found: list[float]) -> tuple[float, bool]:
        if len(expected) != len(found):
            return float("inf"), False
        limits = self._limits
        differences = [abs(left - right) for left, right in zip(expected, found, strict=True)]
        is_close = all(
            difference <= limits.absolute_tolerance + limits.relative_tolerance * abs(left)
            for difference, left in zip(differences, expected, strict=True)
        )
        return max(differences, default=0.0), is_close

    def _mistreat(self, golden: GoldenRequest) -> None:
        requests = make_malformed_requests(golden.to_inference_request(self._contract), contract=self._contract)
        for request in requests:
            try:
                answer = self._ask(request.method, request.path, body=request.body, headers=dict(request.headers))
            except ServingError as error:
                self._complain("malformed-dropped", f"{request.name}: no answer: {error.message}")
                continue
            self._judge_refusal(request, answer)
        self.facts["malformed_requests"] = len(requests)

    def _judge_refusal(self, request: MalformedRequest, answer: HttpAnswer) -> None:
        if not 400 <= answer.status < 500:
            self._complain("malformed-accepted", f"{request.name}: status {answer.status}, a 4xx was due")
            return
        try:
            is_sentence = isinstance(answer.json()["error"], str)
        except (ValueError, KeyError, TypeError):
            is_sentence = False
        if not is_sentence:
            self._complain("refusal-not-json", f"{request.name}: the refusal is not JSON with an `error`")

    def _break_connections(self) -> None:
        connections = make_broken_connections(self._contract)
        for name, pieces in connections.items():
            answer = talk(self._instance.socket, pieces, timeout_seconds=30)
            if not answer.startswith(b"HTTP/1.1 4"):
                self._complain("broken-connection", f"{name}: a 4xx was due, not {answer[:60]!r}")
        self.facts["broken_connections"] = len(connections)

    def _fuzz(self) -> None:
        found = fuzz_api(self._instance.socket, examples=self._limits.fuzz_examples)
        self.facts["openapi_fuzz"] = found.facts()
        for text in found.contradictions:
            self._complain("contradicts-openapi", text)

    def _observe(self) -> None:
        seen = observe_process(self._instance.socket)
        self.facts["process"] = None if seen is None else seen.facts()
        if seen is not None:
            self.reasons += judge_process(seen)

    def _measure(self, golden: GoldenRequest) -> None:
        body = golden.to_inference_request(self._contract)
        seconds = []
        with SocketClient(self._instance.socket, timeout_seconds=30) as client:
            for _ in range(self._limits.latency_requests):
                started = time.perf_counter()
                answer = client.ask_json(self._path, body)
                seconds.append(time.perf_counter() - started)
                if answer.status != 200:
                    self._complain("latency-error", f"status {answer.status} while measuring")
                    return
        seconds.sort()
        p50, p99 = seconds[len(seconds) // 2], seconds[min(len(seconds) - 1, len(seconds) * 99 // 100)]
        self.facts["latency_p50_seconds"] = round(p50, 6)
        self.facts["latency_p99_seconds"] = round(p99, 6)
        if p99 > self._limits.latency_p99_seconds:
            self._complain(
                "too-slow", f"99 % of single rows take up to {p99:.3f} s, {self._limits.latency_p99_seconds:g} allowed"
            )

    def _measure_memory(self) -> None:
        found = _memory_of(self._ask("GET", "/metrics").text)
        if found is None:
            self._complain("memory-unknown", "the server does not say how much memory it uses")
            return
        self.facts["memory_bytes"] = found
        if found > self._limits.memory_bytes:
            self._complain("too-much-memory", f"{found} bytes in use, {self._limits.memory_bytes} allowed")

    def _require_alive(self) -> None:
        if not self._runtime.is_running(self._instance):
            self._complain("died", "the server ended while it was being tried out")

    def _drain(self) -> None:
        started = time.monotonic()
        was_running = self._runtime.is_running(self._instance)
        code = self._runtime.stop(self._instance, timeout_seconds=self._limits.drain_seconds)
        self.facts["drain_seconds"] = round(time.monotonic() - started, 3)
        self.facts["exit_code"] = code
        if was_running and code not in (0, None):
            self._complain("no-drain", f"it ended with {code} after SIGTERM, 0 was due")

    def _ask_json(self, path: str, body: Any) -> HttpAnswer:
        with SocketClient(self._instance.socket, timeout_seconds=30) as client:
            return client.ask_json(path, body)


def _flat(values: Any) -> list[float]:
    if isinstance(values, list):
        return [number for value in values for number in _flat(value)]
    return [float(values)]


def _memory_of(metrics: str) -> int | None:
    for line in metrics.splitlines():
        if line.startswith("process_resident_memory_bytes "):
            return int(float(line.split()[1]))
    return None
