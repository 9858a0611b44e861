"""The filter in a real sandbox: what the server needs works, calling out and mounting do not."""

import os
import shutil
import subprocess

import pytest

from mlops.deploy.seccomp import ALLOWED, open_filter, render_profile

_TRY = """
import ctypes, os, socket
with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0)); listener.listen()
    try:
        socket.create_connection(listener.getsockname(), timeout=5)
        print("connected")
    except PermissionError:
        print("no connect")
libc = ctypes.CDLL(None, use_errno=True)
print("mounted" if libc.mount(b"x", b"/", b"tmpfs", 0, None) == 0 else os.strerror(ctypes.get_errno()))
"""


@pytest.mark.system
def test_the_filter_allows_serving_and_refuses_the_rest():
    if shutil.which("bwrap") is None:
        pytest.skip("bwrap is missing")
    handle = open_filter()
    try:
        sandbox = ["bwrap", "--unshare-user", "--ro-bind", "/", "/", "--dev", "/dev", "--seccomp", str(handle)]
        done = subprocess.run(
            [*sandbox, "/usr/bin/python3", "-c", _TRY], pass_fds=(handle,), capture_output=True, text=True, check=False
        )
    finally:
        os.close(handle)
    assert done.stdout.splitlines() == ["no connect", "Operation not permitted"], done.stderr


def test_the_profile_names_the_same_calls():
    (rule,) = render_profile()["syscalls"]
    assert set(rule["names"]) == set(ALLOWED)
    assert not {"connect", "ptrace", "mount", "bpf", "unshare", "keyctl", "io_uring_setup"} & set(ALLOWED)
