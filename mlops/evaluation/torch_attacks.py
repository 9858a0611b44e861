"""Our own batched attacks: PGD with restarts, APGD on cross-entropy and on targeted DLR, and a black-box search.

They work on any box `[low, high]` around vectors and drop rows as soon as they are broken, which makes them some twenty
times faster than ART's AutoAttack at a stronger result (benchmarks/bench_gate.py).
Source: APGD, the DLR loss and the idea of an ensemble: Croce & Hein, ICML 2020 (AutoAttack). The black-box search keeps
random corners that lower the margin, as Square Attack does (Andriushchenko et al., ECCV 2020), without its squares.
Leaves to others: which changes are allowed (attack_surface.py) and what counts as success (checks/evasion.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Tensor = torch.Tensor
Score = Callable[[Tensor], Tensor]
"""Vectors `[B, D]` to logits `[B, C]`."""


@dataclass(frozen=True)
class Box:
    """Where the attacked vectors may go."""

    start: Tensor
    """`[N, D]`, the unchanged vectors."""
    low: Tensor
    high: Tensor
    radius: Tensor
    """`[D]`, the unit of a step in each coordinate."""

    def take(self, rows: Tensor) -> Box:
        """The box of some rows."""
        return Box(self.start[rows], self.low[rows], self.high[rows], self.radius)

    def clip(self, vectors: Tensor) -> Tensor:
        """The nearest vectors inside."""
        return torch.minimum(torch.maximum(vectors, self.low), self.high)

    def draw(self, generator: torch.Generator) -> Tensor:
        """A random vector inside for each row."""
        share = torch.rand(self.start.shape, generator=generator)
        return self.low + share * (self.high - self.low)


def box_around(start: Tensor, *, radius: Tensor, low: Tensor, high: Tensor) -> Box:
    """L∞ ball of `radius` `[D]` around each row, cut with `[low, high]`; a row already outside may stay there."""
    return Box(
        start=start,
        low=torch.minimum(torch.maximum(start - radius, low), start),
        high=torch.maximum(torch.minimum(start + radius, high), start),
        radius=radius,
    )


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the true class minus that of the best other one; negative means a wrong answer."""
    true = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return true - others.max(dim=1).values


def cross_entropy(logits: Tensor, labels: Tensor, _target: Tensor | None) -> Tensor:
    """Per row, to be raised."""
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def targeted_ratio(logits: Tensor, labels: Tensor, target: Tensor | None) -> Tensor:
    """Targeted difference of logits ratio, to be raised; the plain margin where there are fewer than four classes."""
    if target is None or logits.shape[1] < 4:
        return -margins(logits, labels)
    true, aim = logits.gather(1, labels[:, None])[:, 0], logits.gather(1, target[:, None])[:, 0]
    ordered = logits.sort(dim=1).values
    scale = ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4])
    return -(true - aim) / (scale + 1e-12)


Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def attack_pgd(
    score: Score, box: Box, labels: Tensor, *, steps: int, restarts: int, generator: torch.Generator
) -> Tensor:
    """Projected gradient ascent on cross-entropy, first from the row itself, then from random starts."""
    best = _Best(score, box, labels)
    for restart in range(restarts + 1):
        rows = best.unbroken
        if not len(rows):
            break
        part = box.take(rows)
        vectors = part.start.clone() if restart == 0 else part.draw(generator)
        for _ in range(steps):
            gradient, _ = _gradient(score, vectors, labels[rows], None, cross_entropy)
            vectors = part.clip(vectors + 2.5 / steps * part.radius * gradient.sign())
        best.offer(rows, vectors)
    return best.vectors


def attack_apgd(
    score: Score,
    box: Box,
    labels: Tensor,
    *,
    steps: int,
    restarts: int,
    generator: torch.Generator,
    loss: Loss,
    targets: int = 0,
) -> Tensor:
    """Auto-PGD: momentum, and a step that halves when progress stalls.

    Args:
        score: The attacked model.
        box: Where vectors may go.
        labels: True classes.
        steps: Iterations per run.
        restarts: Random starts per run after the first.
        generator: Of random starts.
        loss: What is raised.
        targets: For targeted losses, how many of the likeliest other classes are tried; 0: untargeted.
    """
    best = _Best(score, box, labels)
    with torch.no_grad():
        order = score(box.start).scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True)
    for rank in range(max(1, min(targets, order.shape[1] - 1))):
        for restart in range(restarts + 1):
            rows = best.unbroken
            if not len(rows):
                return best.vectors
            part = box.take(rows)
            start = part.start if restart == 0 and rank == 0 else part.draw(generator)
            target = order[rows, rank] if targets else None
            best.offer(rows, _run_apgd(score, part, labels[rows], target, loss, start=start, steps=steps))
    return best.vectors


def _run_apgd(
    score: Score, box: Box, labels: Tensor, target: Tensor | None, loss: Loss, *, start: Tensor, steps: int
) -> Tensor:
    vectors = previous = start.clone()
    gradient, height = _gradient(score, vectors, labels, target, loss)
    top, top_height, top_gradient = vectors.clone(), height.clone(), gradient.clone()
    step = torch.full((len(start), 1), 2.0)
    raised, last_height, was_halved = (
        torch.zeros(len(start)),
        top_height.clone(),
        torch.zeros(len(start), dtype=torch.bool),
    )
    check, gap, passed = max(int(0.22 * steps), 1), max(int(0.22 * steps), 1), 0
    for iteration in range(steps):
        ahead = box.clip(vectors + step * box.radius * gradient.sign())
        pull = 0.75 if iteration else 1.0
        moved = box.clip(vectors + pull * (ahead - vectors) + (1 - pull) * (vectors - previous))
        previous, vectors = vectors, moved
        gradient, new_height = _gradient(score, vectors, labels, target, loss)
        raised += (new_height > height).float()
        height = new_height
        is_better = height > top_height
        top[is_better], top_gradient[is_better] = vectors[is_better], gradient[is_better]
        top_height = torch.maximum(top_height, height)
        passed += 1
        if passed == check:
            is_stuck = (raised <= 0.75 * check) | (~was_halved & (last_height >= top_height))
            was_halved, last_height = is_stuck, top_height.clone()
            step[is_stuck] /= 2
            vectors = torch.where(is_stuck[:, None], top, vectors)
            gradient = torch.where(is_stuck[:, None], top_gradient, gradient)
            gap = max(gap - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
            check, passed = gap, 0
            raised.zero_()
    return top


def attack_by_search(score: Score, box: Box, labels: Tensor, *, queries: int, generator: torch.Generator) -> Tensor:
    """Black box: random corners and points of the box in ever fewer coordinates, kept when the margin falls."""
    best = _Best(score, box, labels)
    width = box.start.shape[1]
    for query in range(queries):
        rows = best.unbroken
        if not len(rows):
            break
        part = box.take(rows)
        share = max(0.5 * (1 - query / queries), 1.0 / width)
        is_tried = torch.rand(part.start.shape, generator=generator) < share
        place = torch.rand(part.start.shape, generator=generator)
        if query % 2 == 0:
            place = place.round()  # a corner; every other time a point inside, which chooses among categories evenly
        proposed = torch.where(is_tried, part.low + place * (part.high - part.low), best.vectors[rows])
        best.offer(rows, proposed)
    return best.vectors


class _Best:
    """The lowest margin found for each row so far."""

    def __init__(self, score: Score, box: Box, labels: Tensor) -> None:
        self._score, self._labels = score, labels
        self.vectors = box.start.clone()
        with torch.no_grad():
            self.margins = margins(score(box.start), labels)

    @property
    def unbroken(self) -> Tensor:
        return torch.nonzero(self.margins > 0)[:, 0]

    def offer(self, rows: Tensor, vectors: Tensor) -> None:
        with torch.no_grad():
            found = margins(self._score(vectors), self._labels[rows])
        is_better = found < self.margins[rows]
        self.margins[rows[is_better]] = found[is_better]
        self.vectors[rows[is_better]] = vectors[is_better]


def _gradient(
    score: Score, vectors: Tensor, labels: Tensor, target: Tensor | None, loss: Loss
) -> tuple[Tensor, Tensor]:
    """Gradient of the loss, and the loss of each row."""
    attached = vectors.detach().requires_grad_(True)
    logits = score(attached)
    heights = loss(logits, labels, target)
    (gradient,) = torch.autograd.grad(heights.sum(), attached)
    return torch.nan_to_num(gradient), heights.detach()
