"""`mlops image run` as a person ends it: whatever ends the command ends the server, after it drained."""

import os
import signal
import socket
import subprocess
import sys

import pytest


@pytest.fixture
def project(bakery, tmp_path):
    (tmp_path / "datasets.dvc").write_text("outs: []\n")
    (tmp_path / ".mlops").mkdir()
    (tmp_path / ".mlops/images").symlink_to(bakery.request.layout)
    return tmp_path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_server_does_not_outlive_its_command(project, number, ask_ready):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mlops = [sys.executable, "-m", "mlops.cli"]
    command = [*mlops, "image", "run", "income@1", "--runtime", "process", "--port", str(port)]
    environment = {**os.environ, "HOME": str(project), "PYTHONUNBUFFERED": "1"}
    running = subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert f"serving on http://127.0.0.1:{port} (process)" in running.stdout.readline()
        assert ask_ready(port) == 200
        running.send_signal(number)
        assert ("draining" in running.stdout.read()) == (number != signal.SIGKILL)
        assert running.wait(timeout=60) == (-number if number == signal.SIGKILL else 0)
        if number == signal.SIGKILL:  # nobody could drain it
            assert ask_ready(port) == 200
            told = subprocess.run([*mlops, "stop"], cwd=project, env=environment, capture_output=True, text=True)
            assert "whose command was dead" in told.stdout
    finally:
        running.kill()
        running.stdout.close()
    with pytest.raises(ConnectionRefusedError):
        ask_ready(port)
