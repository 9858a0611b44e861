"""A cluster that RAY_ADDRESS names and nobody answers at: one sentence at once."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from mlops.errors import EnvironmentFault
from mlops.places import Places
from mlops.training.ray_cluster import connected


@pytest.mark.parametrize("form", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_an_unreachable_cluster_is_said_without_waiting(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as taken:  # bound but not listening: refused for sure
        taken.bind(("127.0.0.1", 0))
        address = form.format(port=taken.getsockname()[1])
        monkeypatch.setenv("RAY_ADDRESS", address)
        began = time.monotonic()
        with pytest.raises(EnvironmentFault, match="cannot be reached") as caught, connected(Places(tmp_path)):
            pass
    assert time.monotonic() - began < 10
    assert address in caught.value.message
    assert "unset RAY_ADDRESS" in caught.value.hint
