"""Trainers of bench_sweeps.py as text, and the same training as plain torch for the rivals: same model, steps and data.

Leaves to others: measuring (bench_sweeps.py), Ray Tune (sweep_peers.py).
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import torch

EPOCHS = 2
PASSES = 2
"""Over the training rows in each epoch: an epoch takes more than 100 ms on one core."""
BATCH = 64

IDLE = """
import time
import torch


def model(params):
    return torch.nn.Linear(1, 2)


def train(worker, params):
    net = model(params)
    for _ in worker.epochs({"model": net}):
        time.sleep(params["seconds"])
        worker.report({"loss": params["x"]})
"""
DIGITS = """
import torch


def model(params):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Flatten(), torch.nn.Linear(784, params["width"]), torch.nn.ReLU(),
                torch.nn.Linear(params["width"], params["classes"]))

        def forward(self, columns):
            return self.layers(columns["image"])

    return Net()


def train(worker, params):
    net = model(params)
    fast = worker.prepare(net)
    optimizer = torch.optim.SGD(net.parameters(), params["learning_rate"])
    for _ in worker.epochs({"model": net, "optimizer": optimizer}):
        for _ in range(params["passes"]):
            for batch in worker.batches("train", batch_size=64):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(fast(batch.features), batch.label).backward()
                optimizer.step()
        worker.report(worker.measure(net.eval(), "validation"))
        net.train()
"""
IDLE_SPEC = """
version: 1
product: idle
dataset: digits
budget: research
objective: {metric: loss}
space: {x: {low: 0.0, high: 1.0}}
fixed: {seconds: 1.0}
trials: 4
epochs: 1
sampler: random
workers: 1
accelerators: 1xcpu
groups: 2
start_deadline: 300s
"""
DIGITS_SPEC = """
version: 1
product: digits
dataset: digits
budget: research
objective: {metric: loss}
space: {learning_rate: {low: 0.001, high: 0.1, log: true}}
fixed: {width: 256, passes: 2}
trials: 4
epochs: 2
sampler: random
workers: 1
accelerators: 1xcpu
groups: 2
"""


def load_tensors(file: Path) -> dict[str, torch.Tensor]:
    """What `save_tensors` wrote."""
    return torch.load(file, weights_only=True)


def train_plain(
    tensors: dict[str, torch.Tensor], *, learning_rate: float, seed: int, report, passes: int = PASSES
) -> float:
    """The training of DIGITS as plain torch from tensors in memory; gives its seconds."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    optimizer = torch.optim.SGD(net.parameters(), learning_rate)
    image, label = tensors["train_image"], tensors["train_label"]
    for epoch in range(EPOCHS):
        net.train()
        for _ in range(passes):
            order = torch.randperm(len(label))
            for start in range(0, len(label), BATCH):
                rows = order[start : start + BATCH]
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(net(image[rows]), label[rows]).backward()
                optimizer.step()
        net.eval()
        with torch.no_grad():
            logits = net(tensors["validation_image"])
            loss = torch.nn.functional.cross_entropy(logits, tensors["validation_label"])
            accuracy = (logits.argmax(1) == tensors["validation_label"]).double().mean()
        report({"loss": float(loss), "accuracy": float(accuracy)}, epoch)
    return time.perf_counter() - started
