"""A gang that is asked to yield: all its workers leave at one step, however late some of them hear of it."""

import multiprocessing
import os
import runpy
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Turn:
    """One attempt of some workers of the gang, which meet anew for it."""

    task: AttemptTask
    workers: int
    asked_at: dict[int, int]
    port: int


def run_rank(rank: int, turns: list[Turn], results) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    source = runpy.run_path(str(CONFTEST), run_name="training_conftest")["MemorySource"]()
    for number, turn in enumerate(turns):
        if rank >= turn.workers:
            continue
        where = f"tcp://127.0.0.1:{turn.port}"
        torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=turn.workers)
        channel, world = Asked(turn.asked_at.get(rank, 0)), {"rank": rank, "world_size": turn.workers}
        result = run_attempt(turn.task, source=source, channel=channel, device="cpu", **world)
        results.put((number, rank, result.outcome, result.reason, result.weights_sha256, channel.calls))
        torch.distributed.destroy_process_group()


def run_gang(turns: list[Turn]):
    """Of each turn: outcome of each rank, weights of the first, and the steps that rank 0 began.

    One gang for all turns: each of its processes loads torch for seconds.
    """
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [
        context.Process(target=run_rank, args=(rank, turns, results), daemon=True)
        for rank in range(max(turn.workers for turn in turns))
    ]
    for rank in ranks:
        rank.start()
    found = sorted(results.get(timeout=120) for turn in turns for _ in range(turn.workers))
    for rank in ranks:
        rank.join(30)
        rank.kill()
    by_turn = [[it for it in found if it[0] == number] for number in range(len(turns))]
    return [([outcome for _, _, outcome, *_ in ranks], *ranks[0][-2:]) for ranks in by_turn]


CASES = {"three, of which only the last hears of it": (3, {2: 3}), "two, at different steps": (2, {0: 9, 1: 5})}


def make_turns(folder, *, workers: int, asked_at: dict[int, int], batch_size: int) -> list[Turn]:
    """A trial that is asked to yield, the rest of it, and the whole of it."""
    made = runpy.run_path(str(CONFTEST), run_name="training_conftest")
    folder.mkdir()
    trainer = folder / "tiny.py"
    trainer.write_text(made["TRAINER"].replace("batch_size=16", f"batch_size={batch_size}"))

    def task(trial: str, attempt: int = 0) -> AttemptTask:
        params = {"learning_rate": 0.01, **made["RESERVED"]}
        return AttemptTask(
            sweep_id="s", trial=0, attempt=attempt, params=params, seed=7, epochs=2, trainer_file=str(trainer),
            trainer_digest="", trial_folder=str(folder / trial), checkpoint_epochs=1, required_metrics=("loss",),
        )  # fmt: skip

    asked = [(task("parts"), asked_at), (task("parts", attempt=1), {}), (task("whole"), {})]
    return [Turn(task, workers, asked_at, find_free_port()) for task, asked_at in asked]


def test_all_workers_leave_at_one_step_and_no_step_is_done_twice(tmp_path):
    sizes = {3: 15, 2: 16}  # of a batch, which all share equally
    turns = [
        make_turns(tmp_path / str(workers), workers=workers, asked_at=asked_at, batch_size=sizes[workers])
        for workers, asked_at in CASES.values()
    ]
    answers = iter(run_gang([turn for case in turns for turn in case]))
    for case, (workers, asked_at) in CASES.items():
        steps = 2 * (-(-ROWS // sizes[workers]) + 1 + 1 + 1)  # epochs; validation is a batch; a split's end is a step
        (first, _, begun), (second, resumed, rest), (_, weights, _) = next(answers), next(answers), next(answers)
        assert (first, second) == (["yielded"] * workers, ["complete"] * workers), case
        assert begun - min(asked_at.values()) <= YIELD_STEPS, f"{case}: they agree within so many steps"
        assert begun + rest == steps + 1, f"{case}: the step before which they left was begun twice, and done once"
        assert resumed == weights, f"{case}: bit by bit; DDP adds in the same order from its first step on"
