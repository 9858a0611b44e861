"""One trial by hand on as many workers as in its sweep: rank 0 is this process, the others are its children.

Breakpoints work in this process; the others wait for it in the next collective, for a day if need be.
Leaves to others: one worker alone (mlops/training/local_attempt), confined groups (mlops/training/process_group).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from multiprocessing.connection import Connection

import torch

from mlops.training.attempt import AttemptResult, AttemptTask, BatchSource
from mlops.training.local_attempt import LocalChannel, LocalTrial
from mlops.training.process_group import find_free_port
from mlops.training.worker import run_attempt

PATIENCE = timedelta(days=1)
END_SECONDS = 10.0


def run_local_group(
    trial: LocalTrial, *, workers: int, open_source: Callable[[], BatchSource], channel: LocalChannel
) -> AttemptResult:
    """Run the trial here, to the bits that a group of so many CPU workers gives.

    Args:
        trial: What is run.
        workers: Of the trial.
        open_source: Makes the batches; picklable, because each worker calls it.
        channel: Hears the reports.
    """
    task, port = trial.task(), find_free_port()
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(1, workers)]
    others = [
        context.Process(target=_run_other, args=(rank, workers, port, task, open_source, pipe[1]), daemon=True)
        for rank, pipe in enumerate(pipes, start=1)
    ]
    for other in others:
        other.start()
    try:
        with _joined(0, workers, port):
            result = run_attempt(task, source=open_source(), channel=channel, rank=0, world_size=workers, device="cpu")
        for other in others:
            other.join(END_SECONDS)
        return _name_first_failure(result, [pipe[0] for pipe in pipes])
    finally:
        for other in others:
            other.kill()
            other.join()


def _run_other(
    rank: int,
    workers: int,
    port: int,
    task: AttemptTask,
    open_source: Callable[[], BatchSource],
    answer: Connection,
) -> None:
    """What a child runs."""
    with _joined(rank, workers, port):
        source, channel = open_source(), LocalChannel()
        result = run_attempt(task, source=source, channel=channel, rank=rank, world_size=workers, device="cpu")
        answer.send(f"worker {rank}: {result.reason}" if result.is_bad and not result.has_lost_peer else "")


def _name_first_failure(result: AttemptResult, answers: list[Connection]) -> AttemptResult:
    """When a worker failed alone, what the others say follows from it: they lost their connection to it."""
    if not result.has_lost_peer:
        return result
    for answer in answers:
        with contextlib.suppress(EOFError, OSError):
            said = answer.recv() if answer.poll() else ""
            if said:
                return replace(result, outcome="failed", reason=said)
    return result


@contextmanager
def _joined(rank: int, workers: int, port: int) -> Iterator[None]:
    """One thread for sums and a gloo group, as in a worker of a sweep; both as before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if workers > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        where = f"tcp://127.0.0.1:{port}"
        torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=workers, timeout=PATIENCE)
    try:
        yield
    finally:
        if workers > 1:
            torch.distributed.destroy_process_group()
        torch.set_num_threads(threads)
