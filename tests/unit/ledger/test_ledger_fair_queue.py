"""First come, first served, and the dead do not block."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mlops.ledger.fair_queue import IS_SUPPORTED, wait_turn

pytestmark = pytest.mark.skipif(not IS_SUPPORTED, reason="this kernel has no open-file-description locks")


def test_waiters_are_served_in_the_order_they_came(tmp_path: Path):
    path, served = tmp_path / "queue", []

    def take(number: int) -> None:
        with wait_turn(path, timeout_seconds=20):
            served.append(number)

    threads = []
    with wait_turn(path, timeout_seconds=1) as is_mine:
        assert is_mine
        for number in range(6):
            threads.append(threading.Thread(target=take, args=(number,)))
            threads[-1].start()
            while _last_ticket(path) < number + 2:
                time.sleep(0.002)
        assert served == []
    for thread in threads:
        thread.join()
    assert served == list(range(6))


def test_a_killed_holder_gives_the_turn_back(tmp_path: Path):
    path = tmp_path / "queue"
    code = (
        "import sys, time; from pathlib import Path; from mlops.ledger.fair_queue import wait_turn\n"
        "with wait_turn(Path(sys.argv[1]), timeout_seconds=5):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with wait_turn(path, timeout_seconds=0.05) as is_mine:
        assert not is_mine
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with wait_turn(path, timeout_seconds=5) as is_mine:
        assert is_mine


def _last_ticket(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[:8], sys.byteorder)
