"""Settings of the server, resolved once from the environment. Leaves to others: acting on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


class SettingsError(ValueError):
    """An environment variable cannot be used; the text names it."""


@dataclass(frozen=True)
class Settings:
    """What can be set from outside, with the variable's name in capitals."""

    models: str = "/opt/mlops/models"
    """Folder `<product>/<version>/`."""
    host: str = "127.0.0.1"
    port: int | None = None
    """None: no TCP."""
    socket: str | None = None
    """Path of the Unix socket; None: none."""
    max_body_bytes: int = 8 << 20
    max_batch_rows: int = 4_096
    """Per request, and per run of the model."""
    max_concurrency: int = 1_024
    """Requests being answered at once; more get 503."""
    body_timeout_seconds: float = 10.0
    """For a request's head and body to arrive."""
    request_timeout_seconds: float = 30.0
    """For the model's answer."""
    drain_seconds: float = 0.0
    """How long to go on accepting after SIGTERM while `ready` says no; for routers that poll."""
    stop_timeout_seconds: float = 20.0
    """How long open requests may take after that."""
    threads: int = 1
    """Of one run of the model."""
    batching: bool = True
    """Requests that wait at the same time share one run of the model."""
    request_log: str = "errors"
    """`all`, `errors` or `none`."""
    image_digest: str = ""
    """Told by the runtime, repeated in answers."""


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Settings from environment variables.

    Raises:
        SettingsError: A value is not of its type or range.
    """
    request_log = environment.get("REQUEST_LOG", "errors")
    if request_log not in ("all", "errors", "none"):
        raise SettingsError(f"REQUEST_LOG={request_log!r}: write all, errors or none")
    port = environment.get("PORT", "")
    return Settings(
        models=environment.get("MODELS") or Settings.models,
        host=environment.get("HOST") or Settings.host,
        port=_whole(environment, "PORT", 0, 0, 65_535) if port else None,
        socket=environment.get("SOCKET") or None,
        max_body_bytes=_whole(environment, "MAX_BODY_BYTES", Settings.max_body_bytes, 1, 1 << 34),
        max_batch_rows=_whole(environment, "MAX_BATCH_ROWS", Settings.max_batch_rows, 1, 1 << 24),
        max_concurrency=_whole(environment, "MAX_CONCURRENCY", Settings.max_concurrency, 1, 1 << 20),
        body_timeout_seconds=_seconds(environment, "BODY_TIMEOUT_SECONDS", Settings.body_timeout_seconds),
        request_timeout_seconds=_seconds(environment, "REQUEST_TIMEOUT_SECONDS", Settings.request_timeout_seconds),
        drain_seconds=_seconds(environment, "DRAIN_SECONDS", Settings.drain_seconds),
        stop_timeout_seconds=_seconds(environment, "STOP_TIMEOUT_SECONDS", Settings.stop_timeout_seconds),
        threads=_whole(environment, "THREADS", Settings.threads, 1, 1_024),
        batching=_whole(environment, "BATCHING", 1, 0, 1) == 1,
        request_log=request_log,
        image_digest=environment.get("MLOPS_IMAGE_DIGEST", ""),
    )


def _whole(environment: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal() or not low <= int(text) <= high:
        raise SettingsError(f"{name}={text!r}: write a whole number from {low} to {high}")
    return int(text)


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name) or str(default)
    try:
        value = float(text)
    except ValueError as error:
        raise SettingsError(f"{name}={text!r}: write seconds") from error
    if not 0 <= value <= 86_400:
        raise SettingsError(f"{name}={text!r}: write seconds from 0 to 86400")
    return value
