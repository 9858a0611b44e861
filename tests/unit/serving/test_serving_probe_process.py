"""A look at a listening process: this one."""

import os
import socket
from dataclasses import replace

import pytest

from mlops.serving.probe_process import ObservedProcess, judge_process, observe_process

GOOD = ObservedProcess(
    is_isolated=True,
    capabilities=0,
    has_no_new_privileges=True,
    seccomp=2,
    environment={"ORT_DISABLE_TELEMETRY": "1"},
    written_files=(),
    internet_sockets=(),
    mapped_files=3,
    suspicious_files=(),
    limits={},
    left_files=(),
)
BAD = {
    "capabilities": {"capabilities": 0x400},
    "new-privileges": {"has_no_new_privileges": False},
    "no-seccomp": {"seccomp": 0},
    "telemetry": {"environment": {}},
    "file-open-for-writing": {"written_files": ("/tmp/x",)},
    "internet-socket": {"internet_sockets": ("tcp a to b",)},
    "file-left": {"left_files": ("/tmp/x",)},
}


@pytest.fixture
def listener(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        yield tmp_path / "s"


def test_what_a_process_holds_is_seen(listener, tmp_path):
    with (tmp_path / "telemetry.db").open("wb") as file, socket.socket() as outside:
        outside.bind(("127.0.0.1", 0))
        outside.listen()
        seen = observe_process(listener)
        assert seen is not None
        assert file.name in seen.written_files
        assert file.name in seen.suspicious_files
        assert any(name.startswith("tcp ") for name in seen.internet_sockets)
    after = observe_process(listener)
    assert after is not None
    assert file.name not in after.written_files
    assert after.environment.get("PATH") == os.environ.get("PATH")
    assert after.mapped_files > 3
    assert not after.is_isolated


def test_nobody_listens(tmp_path):
    assert observe_process(tmp_path / "nobody") is None


def test_a_good_process_gives_no_reason():
    assert judge_process(GOOD) == ()


@pytest.mark.parametrize(("code", "change"), BAD.items(), ids=BAD)
def test_each_fault_is_named(code, change):
    assert [reason.code for reason in judge_process(replace(GOOD, **change))] == [code]
