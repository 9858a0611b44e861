"""Asking a running server what its own OpenAPI document allows, and what it forbids: the one door to schemathesis.

schemathesis is a tool of development, not a dependency of `mlops`: where it is missing the result says so.
Leaves to others: what else is asked (malformed.py), what the result means (probe.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops.serving.socket_client import SocketClient

_ADDRESS = "http://server"
"""Stands for the Unix socket."""
_SHOWN = 200


@dataclass(frozen=True)
class FuzzResult:
    """What was asked, and which answers contradict the document."""

    tool: str | None
    """Name and version; None where it is not installed, and nothing was asked."""
    cases: int = 0
    contradictions: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """For the probe's result."""
        if self.tool is None:
            return {"ran": False, "why": "schemathesis is not installed: `pip install schemathesis`"}
        return {"ran": True, "tool": self.tool, "cases": self.cases}


def fuzz_api(server_socket: Path, *, examples: int) -> FuzzResult:
    """Ask every operation `examples` times what it allows and as often what it forbids; the same cases each time.

    A contradiction is a 5xx, a status that the document does not name, or a body of another form than it says.

    Raises:
        ServingError: The server does not answer, or hands out no document.
    """
    try:
        import schemathesis  # installed with `mlops[development]` only
    except ImportError:
        return FuzzResult(None)
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error, response_schema_conformance, status_code_conformance
    from schemathesis.core.failures import Failure, FailureGroup

    checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
    contradictions: dict[str, None] = {}
    cases = 0
    with SocketClient(server_socket, timeout_seconds=30) as client:
        document = client.ask("GET", "/openapi.json", body=b"", headers={}).json()
        strategies = []
        for found in schemathesis.openapi.from_dict(document).get_all_operations():
            operation: Any = found.ok()  # type: ignore[union-attr]  # raises what is wrong with the document
            if operation.method.upper() == "POST":
                strategies += [operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]
            else:
                strategies.append(operation.as_strategy())

        for strategy in strategies:

            @settings(
                max_examples=examples,
                derandomize=True,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=strategy)
            def attempt(case: Any) -> None:
                nonlocal cases
                cases += 1
                try:
                    case.validate_response(_ask(client, case), checks=checks)
                except (Failure, FailureGroup) as group:
                    for failure in getattr(group, "exceptions", (group,)):
                        text = " ".join(str(failure).split())[:_SHOWN]
                        contradictions[f"{case.method} {case.path}: {text}"] = None

            attempt()
    return FuzzResult(f"schemathesis {schemathesis.__version__}", cases, tuple(contradictions))


def _ask(client: SocketClient, case: Any) -> Any:
    """The case as schemathesis would send it, sent over the Unix socket."""
    import requests  # schemathesis needs it
    from schemathesis import Response

    prepared = requests.Request(**case.as_transport_kwargs(base_url=_ADDRESS)).prepare()
    body: Any = prepared.body or b""
    body = body.encode() if isinstance(body, str) else bytes(body)
    path = str(prepared.url).removeprefix(_ADDRESS) or "/"
    headers = {name: str(value) for name, value in prepared.headers.items() if name.lower() != "content-length"}
    started = time.monotonic()
    answer = client.ask(str(prepared.method), path, body=body, headers=headers)
    return Response(
        status_code=answer.status,
        headers={name: [value] for name, value in answer.headers.items()},
        content=answer.body,
        request=prepared,
        elapsed=time.monotonic() - started,
        verify=False,
    )
