"""Serving an image on this machine for a try, until the person stops it.

Leaves to others: serving for real (mlops/deploy).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from mlops.errors import ServingError
from mlops.serving.probe_scratch import TRIAL, name_instance, probe_scratch, stop_left_over
from mlops.serving.runtime import Instance, RunRequest, Runtime
from mlops.serving.socket_client import SocketClient

_START_SECONDS = 20
_STOP_SECONDS = 20


def serve_until_interrupted(
    layout: Path, *, digest: str, port: int, runtime: Runtime, say: Callable[[str], None]
) -> None:
    """Start the image, say where it answers, wait for Ctrl-C, drain it.

    Raises:
        ServingError: It does not start, or ends by itself.
    """
    stop_left_over(runtime)  # of a killed call, which may hold the port
    with probe_scratch() as sockets:
        request = RunRequest(
            name=name_instance(sockets, digest=digest, kind=TRIAL),
            layout=layout,
            digest=digest,
            socket_folder=sockets,
            tcp_port=port,
            environment={"REQUEST_LOG": "all"},
        )
        instance = runtime.start(request)
        try:
            _wait_until_ready(runtime, instance, port=port)
            say(f"serving on http://127.0.0.1:{port} ({runtime.name}); stop with Ctrl-C")
            while runtime.is_running(instance):
                time.sleep(0.5)
            raise ServingError("the server ended by itself", items=tuple(runtime.logs(instance).splitlines()[-5:]))
        except KeyboardInterrupt:
            say("draining")
        finally:
            runtime.stop(instance, timeout_seconds=_STOP_SECONDS)


def _wait_until_ready(runtime: Runtime, instance: Instance, *, port: int) -> None:
    started = time.monotonic()
    while time.monotonic() - started < _START_SECONDS:
        try:
            with SocketClient(instance.socket, timeout_seconds=5) as client:
                if client.ask("GET", "/v2/health/ready", body=b"", headers={}).status == 200:
                    return
        except ServingError:
            if not runtime.is_running(instance):
                break
        time.sleep(0.02)
    told = tuple(runtime.logs(instance).splitlines()[-5:])
    is_taken = any("Address already in use" in line for line in told)
    hint = f"`ss -ltnp sport = :{port}` says who has the port; choose another one with --port" if is_taken else ""
    raise ServingError("the server does not get ready", items=told, hint=hint)
