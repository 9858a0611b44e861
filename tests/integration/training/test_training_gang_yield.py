"""A gang that is asked to yield: all its workers leave at one step, however late some of them hear of it."""

import multiprocessing
import os
import runpy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mlops.training.attempt import Answer, AttemptTask
from mlops.training.process_group import find_free_port
from mlops.training.worker import YIELD_STEPS, run_attempt

ROWS = 200

CONFTEST = Path(__file__).parents[2] / "unit/training/conftest.py"


@dataclass
class Asked:
    """Asks to yield from call `at` of `step` on; 0 never."""

    at: int
    calls: int = 0

    def step(self, *, epoch, done) -> bool:
        self.calls += 1
        return 0 < self.at <= self.calls

    def report(self, *, epoch, metrics) -> Answer:
        return Answer.CONTINUE

    def conclude(self, *, epoch, metrics) -> None:
        pass


def run_rank(rank: int, workers: int, port: int, task: AttemptTask, asked_at: int, results) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    where = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=workers)
    source = runpy.run_path(str(CONFTEST), run_name="training_conftest")["MemorySource"]()
    channel = Asked(asked_at)
    result = run_attempt(task, source=source, channel=channel, rank=rank, world_size=workers, device="cpu")
    results.put((rank, result.outcome, result.reason, result.weights_sha256, channel.calls))
    torch.distributed.destroy_process_group()


def run_gang(task: AttemptTask, *, workers: int, asked_at: dict[int, int]):
    """Outcome of each rank, weights of the first, and the steps that rank 0 began."""
    context = multiprocessing.get_context("spawn")
    results, port = context.Queue(), find_free_port()
    ranks = [
        context.Process(target=run_rank, args=(rank, workers, port, task, asked_at.get(rank, 0), results), daemon=True)
        for rank in range(workers)
    ]
    for rank in ranks:
        rank.start()
    found = sorted(results.get(timeout=120) for _ in ranks)
    for rank in ranks:
        rank.join(30)
        rank.kill()
    return [outcome for _, outcome, _, _, _ in found], found[0][3], found[0][4]


@pytest.mark.parametrize(
    ("workers", "asked_at"),
    [
        pytest.param(3, {2: 3}, id="three, of which only the last hears of it"),
        pytest.param(2, {0: 9, 1: 5}, id="two, at different steps"),
    ],
)
def test_all_workers_leave_at_one_step_and_no_step_is_done_twice(tmp_path, workers, asked_at):
    made = runpy.run_path(str(CONFTEST), run_name="training_conftest")
    trainer = tmp_path / "tiny.py"
    batch_size = 15 if workers == 3 else 16  # which all share equally
    trainer.write_text(made["TRAINER"].replace("batch_size=16", f"batch_size={batch_size}"))
    steps = 2 * (-(-ROWS // batch_size) + 1 + 1 + 1)  # two epochs; validation is one batch; a split's end is a step too

    def task(folder: str, attempt: int = 0) -> AttemptTask:
        params = {"learning_rate": 0.01, **made["RESERVED"]}
        return AttemptTask(
            sweep_id="s", trial=0, attempt=attempt, params=params, seed=7, epochs=2, trainer_file=str(trainer),
            trainer_digest="", trial_folder=str(tmp_path / folder), checkpoint_epochs=1, required_metrics=("loss",),
        )  # fmt: skip

    first, _, begun = run_gang(task("parts"), workers=workers, asked_at=asked_at)
    second, resumed, rest = run_gang(task("parts", attempt=1), workers=workers, asked_at={})
    assert (first, second) == (["yielded"] * workers, ["complete"] * workers)
    assert begun - min(asked_at.values()) <= YIELD_STEPS, "they agree within so many steps"
    assert begun + rest == steps + 1, "the step before which they left was begun twice, and done once"
    _, weights, _ = run_gang(task("whole"), workers=workers, asked_at={})
    assert resumed == weights, "bit by bit: DDP adds in the same order from its first step on"
