"""The first move of a rollback against a proxy that, as HAProxy does, drops what its reader does not wait for."""

import os
import select
import socket
import threading

import pytest

from mlops.deploy import traffic_switch
from mlops.deploy.first_move import CONTROL_SOCKET, move_traffic

WAY = {"image": "sha256:good", "number": 1, "slot": 0, "leave": [1, 2], "from_image": "sha256:bad", "from_number": 2}


class FakeProxy:
    """Answers every command with an empty line, and one named command with a complaint."""

    def __init__(self, path, *, complains_about="nothing"):
        self.done = []
        self._complains_about = complains_about
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.path.relpath(path))  # a short path
        self._listener.listen()
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self):
        connection, _ = self._listener.accept()
        with self._listener, connection:
            for command in connection.recv(65_536).decode().strip().split(";"):
                self.done.append(command)
                connection.sendall(b"refused\n" if self._complains_about in command else b"\n")
                if select.select([connection], [], [], 0.1)[0]:  # only its end can be read
                    return


@pytest.fixture
def served(tmp_path, monkeypatch):
    (tmp_path / "datasets.dvc").touch()
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".mlops" / "serving" / "production" / "income"
    traffic_switch.slot_folder(folder, 0).mkdir(parents=True)
    traffic_switch.write_way_back(folder, WAY)
    with socket.socket(socket.AF_UNIX) as warm:
        warm.bind(os.path.relpath(traffic_switch.slot_folder(folder, 0) / "server.sock"))
        warm.listen()
        yield folder


def test_every_command_reaches_the_proxy(served):
    proxy = FakeProxy(served / CONTROL_SOCKET)
    moved = move_traffic(["rollback", "production"])
    proxy.thread.join()
    assert moved is not None and moved.startswith("sha256:bad,")
    assert proxy.done[-2:] == ["set server served/slot1 weight 0", "set server served/slot2 weight 0"]
    assert traffic_switch.read_hold(served) == "sha256:good"


def test_a_late_complaint_is_not_taken_for_success(served):
    proxy = FakeProxy(served / CONTROL_SOCKET, complains_about="slot2")
    assert move_traffic(["rollback", "production"]) is None
    proxy.thread.join()
