"""Private training: what is drawn, what is spent, and that the gate is told."""

import math
from pathlib import Path

import pytest
import torch

from mlops.errors import TrainingError
from mlops.evaluation.reference_membership import gaussian_epsilon
from mlops.training.private_training import account, load_privacy
from mlops.training.worker import Worker, run_attempt

TRAINER = """
import torch


class Net(torch.nn.Module):
    def __init__(self, params):
        super().__init__()
        self.plan = torch.nn.Embedding(params["columns"]["plan"], 2)
        self.layers = torch.nn.Linear(3, params["classes"])

    def forward(self, columns):
        return self.layers(torch.cat([columns["age"][:, None] / 100, self.plan(columns["plan"])], 1))


def model(params):
    return Net(params)


def train(worker, params):
    net = model(params)
    private = worker.privatize(net, torch.optim.SGD(net.parameters(), 0.5), noise=1.0, clip=1.0, batch_size=40)
    for epoch in worker.epochs({"model": net, "optimizer": private.optimizer}):
        net.train()
        for batch in private.batches(epoch):
            private.optimizer.zero_grad()
            torch.nn.functional.cross_entropy(private.model(batch.features), batch.label).backward()
            private.optimizer.step()
        worker.report(worker.measure(net.eval(), "validation"))
"""


def test_a_private_trial_keeps_what_it_spent_beside_the_weights(make_task, source, channel) -> None:
    task = make_task(audit_pool=60, audit_seed=1)
    Path(task.trainer_file).write_text(TRAINER)
    result = run_attempt(task, source=source, channel=channel(), rank=0, world_size=1, device="cpu")
    assert result.outcome == "complete", result.reason
    spent = load_privacy(Path(task.trial_folder))
    assert spent is not None
    trained = round(40 / spent["rate"])
    assert 150 < trained < 190  # 200 rows without half of the pool
    assert spent["steps"] == task.epochs * round(trained / 40)
    assert spent["epsilon"] == pytest.approx(
        account(noise=1.0, rate=spent["rate"], steps=spent["steps"], delta=1e-5)[1], rel=1e-6
    )


def test_rows_are_drawn_one_by_one_and_again_the_same(make_task, source, channel) -> None:
    worker = Worker(make_task(), source=source, channel=channel(), rank=0, world_size=1, device="cpu")
    net = torch.nn.Sequential(torch.nn.Linear(2, 2))
    private = worker.privatize(
        net, torch.optim.SGD(net.parameters(), 0.1), noise=1.0, clip=1.0, batch_size=50, delta=1e-5
    )
    drawn = [batch.rows for epoch in range(60) for batch in private.batches(epoch)]
    sizes = torch.tensor([float(len(rows)) for rows in drawn])
    assert abs(sizes.mean() - 50) < 3
    assert sizes.std() > 4  # binomial: 6.1
    assert all(len(rows.unique()) == len(rows) for rows in drawn)
    again = [batch.rows for batch in private.batches(7)]
    assert all(
        torch.equal(one, other) for one, other in zip(again, [batch.rows for batch in private.batches(7)], strict=True)
    )


def test_epsilon_falls_with_noise_and_rises_with_steps() -> None:
    def epsilon(noise: float, steps: int) -> float:
        return account(noise=noise, rate=0.01, steps=steps, delta=1e-5)[1]

    assert epsilon(2.0, 500) < epsilon(1.0, 500) < epsilon(1.0, 2000)
    limit = gaussian_epsilon(0.01 * (1000 * (math.e - 1)) ** 0.5, delta=1e-5)  # Bu et al. 2020: many small steps
    assert epsilon(1.0, 1000) == pytest.approx(limit, rel=0.15)


BAD = {
    "no noise": ({"noise": 0.0, "clip": 1.0, "batch_size": 50}, "noise"),
    "tiny steps": ({"noise": 1.0, "clip": 1.0, "batch_size": 8}, "steps of 32"),
    "steps larger than the data": ({"noise": 1.0, "clip": 1.0, "batch_size": 5000}, "steps of 32"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_private_is_refused(case: str, make_task, source, channel) -> None:
    given, said = BAD[case]
    worker = Worker(make_task(), source=source, channel=channel(), rank=0, world_size=1, device="cpu")
    net = torch.nn.Linear(2, 2)
    with pytest.raises(TrainingError, match=said):
        worker.privatize(net, torch.optim.SGD(net.parameters(), 0.1), **given)


def test_a_layer_that_mixes_rows_is_refused(make_task, source, channel) -> None:
    worker = Worker(make_task(), source=source, channel=channel(), rank=0, world_size=1, device="cpu")
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    with pytest.raises(TrainingError, match="cannot be trained privately"):
        worker.privatize(net, torch.optim.SGD(net.parameters(), 0.1), noise=1.0, clip=1.0, batch_size=50)
