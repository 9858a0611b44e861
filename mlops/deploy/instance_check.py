"""Is a started instance fit to answer? Readiness, and golden requests answered as the judged model answers them.

Leaves to others: what follows from a *no* (reconciler.py), and making golden requests (mlops/serving/golden.py).
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops.deploy.desired_state import ServedVersion
from mlops.deploy.traffic_switch import connect_unix
from mlops.errors import MlopsError, ServingError
from mlops.places import Places
from mlops.provenance.digest import digest_folder, hex_of

TOLERANCE = 1e-5
"""Largest difference from the judged answers: float32 arithmetic differs in its last bits between machines."""
_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class GoldenCase:
    """One request and what the judged model answers."""

    path: str
    body: bytes
    outputs: dict[str, list[float]]
    """Output to its numbers, flattened row by row."""


GoldenSource = Callable[[str, ServedVersion], Sequence[GoldenCase]]
"""(product, version) to its golden cases."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket, however long its path."""

    def __init__(self, path: Path, *, timeout_seconds: float) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._path = path

    def connect(self) -> None:
        self.sock: socket.socket = connect_unix(
            self._path.parent, self._path.name, timeout_seconds=self.timeout or _TIMEOUT_SECONDS
        )


def ask(
    path: Path, method: str, target: str, *, body: bytes | None = None, timeout_seconds: float = _TIMEOUT_SECONDS
) -> tuple[int, bytes]:
    """One request over a Unix socket; status and body.

    Raises:
        OSError: Nobody listens, or no answer in time.
        http.client.HTTPException: The answer is not HTTP.
    """
    connection = _UnixConnection(path, timeout_seconds=timeout_seconds)
    try:
        connection.request(method, target, body=body, headers={"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def is_ready(path: Path, *, timeout_seconds: float = 1.0) -> bool:
    """Whether the server behind a socket says that it is ready."""
    try:
        return ask(path, "GET", "/v2/health/ready", timeout_seconds=timeout_seconds)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def wait_ready(path: Path, *, timeout_seconds: float, is_alive: Callable[[], bool]) -> str | None:
    """Wait for readiness; why it will not come, or None when it came."""
    deadline = time.monotonic() + timeout_seconds
    pause = 0.02
    while time.monotonic() < deadline:
        if is_ready(path):
            return None
        if not is_alive():
            return "died while starting"
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)
    return f"was not ready within {timeout_seconds:g} s"


def find_wrong_answer(path: Path, cases: Sequence[GoldenCase]) -> str | None:
    """The first golden request that is not answered as the judged model answers it; None when all are."""
    for number, case in enumerate(cases):
        try:
            status, body = ask(path, "POST", case.path, body=case.body)
        except (OSError, http.client.HTTPException) as error:
            return f"failed its check: golden request {number} got no answer: {error!r}"
        if status != 200:
            return (
                f"failed its check: golden request {number} got status {status}: {body[:200].decode(errors='replace')}"
            )
        difference = _find_difference(body, case.outputs)
        if difference is not None:
            return f"failed its check: golden request {number}: {difference}"
    return None


def load_golden_cases(places: Places, product: str, version: ServedVersion) -> Sequence[GoldenCase]:
    """Golden requests of a candidate with the judged model's own answers.

    Raises:
        ServingError: The candidate is gone or was changed, so that nothing can be compared.
    """
    from mlops.serving.golden import answer_golden, make_golden_requests  # the answers load onnxruntime
    from mlops.training.contract import load_contract

    folder = places.candidates / hex_of(version.candidate)
    if not folder.is_dir() or digest_folder(folder) != version.candidate:
        raise ServingError(
            f"candidate {version.candidate[:19]} of {product}@{version.number} is not there as it was judged",
            hint="restore .mlops/candidates from a backup, or release again",
        )
    try:
        contract = load_contract(folder / "contract.json")
        requests = make_golden_requests(contract)
        answers = answer_golden(folder, requests, contract=contract)
    except MlopsError as error:
        raise ServingError(f"the judged model of {product}@{version.number} cannot answer: {error.message}") from error
    return tuple(
        GoldenCase(
            path=f"/v2/models/{product}/infer",
            body=json.dumps(request.to_inference_request(contract)).encode(),
            outputs={name: list(_flatten(rows)) for name, rows in answer.items()},
        )
        for request, answer in zip(requests, answers, strict=True)
    )


def _find_difference(body: bytes, expected: dict[str, list[float]]) -> str | None:
    try:
        answered = json.loads(body)["outputs"]  # may hold more than the model's own outputs, such as class names
        outputs = {entry["name"]: list(_flatten(entry["data"])) for entry in answered if entry["name"] in expected}
    except (ValueError, KeyError, TypeError) as error:
        return f"the answer is not of the inference protocol: {error!r}"
    for name, numbers in expected.items():
        found = outputs.get(name)
        if found is None or len(found) != len(numbers):
            return f"output {name} is missing or has another size"
        worst = max((abs(mine - judged) for mine, judged in zip(found, numbers, strict=True)), default=0.0)
        if not worst <= TOLERANCE:  # NaN is wrong too
            return f"output {name} differs by {worst:.3g} from the judged model's answer"
    return None


def _flatten(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        for entry in value:
            yield from _flatten(entry)
    else:
        yield float(value)
