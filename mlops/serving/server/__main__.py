"""Starting the server: settings, models, a TCP and a Unix socket at once, and an orderly end on SIGTERM.

Leaves to others: answering (application.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # works only before onnxruntime is imported

import uvicorn
import uvloop

from .application import Application
from .connections import BoundedProtocol, cut_off_late_requests
from .onnx_model import load_models
from .settings import Settings, SettingsError, read_settings

_BACKLOG = 2_048
_KEEP_ALIVE_SECONDS = 75


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling, which would end the process with the signal's code."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main() -> int:
    """Serve until told to stop; returns the exit code."""
    try:
        settings = read_settings(os.environ)
        models = load_models(settings)
        sockets = _open_sockets(settings)
    except (SettingsError, OSError) as error:
        sys.stderr.write(f"cannot start: {error}\n")
        return 2
    for model in models:
        model.warm_up()
    application = Application(models, settings)
    application.log_event(
        "start",
        models=[f"{model.name}/{model.version}" for model in models],
        providers=models[0].providers,
        port=settings.port,
        socket=settings.socket,
    )
    # What exists now stays: the collector need not look at it again, and what a request makes is freed by counting.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    uvloop.run(_serve(application, settings, sockets))
    application.log_event("end")
    for model in models:
        model.close()
    return 0


async def _serve(application: Application, settings: Settings, sockets: list[socket.socket]) -> None:
    BoundedProtocol.request_seconds = settings.body_timeout_seconds
    config = uvicorn.Config(
        application,
        loop="uvloop",
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.stop_timeout_seconds)),
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if application.is_draining:
            return
        application.is_draining = True
        application.log_event("drain", seconds=settings.drain_seconds)
        loop.call_later(settings.drain_seconds, setattr, server, "should_exit", True)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    sweep = asyncio.create_task(cut_off_late_requests(server.server_state.connections))
    await server.serve(sockets=sockets)
    sweep.cancel()


def _open_sockets(settings: Settings) -> list[socket.socket]:
    """Bound sockets.

    Raises:
        SettingsError: Neither port nor socket is set.
        OSError: A port is taken, or the folder cannot be written.
    """
    found: list[socket.socket] = []
    if settings.socket is not None:
        path = Path(settings.socket)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        path.chmod(0o666)  # the folder it lies in says who may reach it
        found.append(listener)
    if settings.port is not None:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        found.append(listener)
    if not found:
        raise SettingsError("neither PORT nor SOCKET is set: there is nothing to listen on")
    return found


if __name__ == "__main__":
    sys.exit(main())
