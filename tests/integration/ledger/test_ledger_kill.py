"""kill -9 at any statement: the ledger opens, its chain holds and its balances add up."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from mlops.budgets.configuration import apply_budgets
from mlops.budgets.replay import find_differences, load_tables
from mlops.budgets.tree import BudgetNode, BudgetTree, RateCard, RateVersion
from mlops.clock import SystemClock
from mlops.ledger.connection import open_ledger, sqlite_url
from mlops.ledger.sql_events import find_broken_event

KILLS = 40
CAP = 50_000
DRIVER = """
import itertools, os, signal, sys
import sqlalchemy as sa
from mlops.budgets.leases import Lease, LeaseBook, LeaseRequest
from mlops.clock import SystemClock
from mlops.ids import TimeIds
from mlops.ledger.connection import open_ledger
from mlops.units import Accelerators

url = sys.argv[1]
clock = SystemClock()
ledger = open_ledger(url, clock)
book = LeaseBook(ledger, clock, TimeIds(clock))
print("ready", flush=True)
for line in sys.stdin:  # one child per number of statements: fork keeps the interpreter warm
    pid = os.fork()
    if pid == 0:
        left = [int(line)]
        ledger.engine.dispose(close=False)

        def count(*_):
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sa.event.listen(ledger.engine, "before_cursor_execute", count)
        sa.event.listen(ledger.engine, "commit", count)
        for number in itertools.count():
            request = LeaseRequest(
                key=f"{os.getpid()}-{line.strip()}-{number}", budget="team", accelerators=Accelerators("cpu", 1),
                window_seconds=60, grace_seconds=1, checkpoint_seconds=1, holder="driver",
            )
            lease = book.reserve(request)
            if isinstance(lease, Lease):
                token = lease.fencing_token
                book.renew(lease.lease_id, fencing_token=token, window_seconds=30, key=f"r{lease.lease_id}")
                if number % 3:
                    book.settle(lease.lease_id, fencing_token=token, ended_us=clock.now_us(), key=f"s{lease.lease_id}")
    os.waitpid(pid, 0)
    print("killed", flush=True)
"""


def test_a_killed_writer_leaves_a_ledger_that_opens_and_balances(tmp_path: Path, test_scale: int):
    url = sqlite_url(tmp_path / "ledger.sqlite")
    ledger = open_ledger(url, SystemClock())
    nodes = [BudgetNode("company", cap_micro_usd=CAP), BudgetNode("team", parent="company", cap_micro_usd=CAP)]
    apply_budgets(ledger, BudgetTree.of(nodes, rates=RateCard((RateVersion(0, {"cpu": 36_000}),))), who="test")
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert driver.stdin is not None and driver.stdout is not None
    assert driver.stdout.readline() == "ready\n"
    generator = random.Random(6)
    for _ in range(KILLS * test_scale):
        driver.stdin.write(f"{generator.randint(1, 60)}\n")
        driver.stdin.flush()
        assert driver.stdout.readline() == "killed\n"
        again = open_ledger(url, SystemClock())
        with again.read() as connection:
            assert find_broken_event(connection) is None
            assert find_differences(connection) == ()
            held = load_tables(connection).accounts
        again.close()
        for balances in held.values():
            assert balances[0] + balances[1] <= CAP
    driver.stdin.close()
    driver.stdout.close()
    deadline = time.monotonic() + 10
    while driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert driver.returncode == 0 or driver.send_signal(signal.SIGKILL)
    ledger.close()
