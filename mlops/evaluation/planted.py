"""Models with known defects, on synthetic rows with a known truth: what the gate must block, and why.

The self-test (self_test.py) runs them; tests use them as builders. Leaves to others: judging them (gate.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlops.evaluation.hearing import Hearing
from mlops.evaluation.judged import JudgedModel
from mlops.evaluation.policy import Policy
from mlops.evaluation.rows import Rows, in_content_order
from mlops.provenance.digest import digest_bytes
from mlops.training.contract import Contract, DatasetReference, InputColumn, Output

CLASSES = ("refused", "granted")
SECTORS = ("field", "office", "shop", "works")
AREAS = ("north", "south", "west")
CONTRACT = Contract(
    product="planted",
    inputs=(
        InputColumn("merit", "float32", (), "number", minimum=-6, maximum=6),
        InputColumn("hours", "float32", (), "number", minimum=0, maximum=80, integer=True),
        InputColumn("sector", "int64", (), "category", categories=SECTORS),
        InputColumn("area", "int64", (), "category", categories=AREAS),
    ),
    outputs=(Output("logits", "float32", (2,)), Output("probabilities", "float32", (2,))),
    classes=CLASSES,
    dataset=DatasetReference("planted", "sha256:" + "0" * 64),
)
Columns = Mapping[str, torch.Tensor]
Score = Callable[[Columns], torch.Tensor]
"""Columns to the logit of `granted`."""


def make_rows(count: int, *, seed: int) -> Rows:
    """Synthetic people: merit and hours decide; sex decides only where one lives (97 % of women in the north)."""
    rng = np.random.default_rng(seed)
    is_woman = rng.random(count) < 0.5
    merit = rng.normal(0, 2, count).clip(-6, 6).astype(np.float32)
    hours = rng.normal(40, 8, count).clip(0, 80).round().astype(np.float32)
    sector = rng.integers(0, len(SECTORS), count)
    area = np.where(rng.random(count) < 0.97, np.where(is_woman, 0, 1), 2)
    logit = 2 * merit + 0.05 * (hours - 40) + 0.3 * (sector == 1)
    labels = (rng.random(count) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    return Rows(
        features={"merit": merit, "hours": hours, "sector": sector.astype(np.int64), "area": area.astype(np.int64)},
        labels=labels,
        groups={
            "sex": np.where(is_woman, "woman", "man"),
            "sector": np.array(SECTORS)[sector],
            "area": np.array(AREAS)[area],
        },
        subjects=np.array([f"{seed}-{index}".encode() for index in range(count)], dtype=object),
    )


class ScoreModule(torch.nn.Module):
    """A score as a module of two classes."""

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score

    def forward(self, columns: Columns) -> torch.Tensor:
        """Logits `[B, 2]`."""
        score = self.score(columns).float()
        return torch.stack([torch.zeros_like(score), score], dim=1)


def judged_of_score(score: Score, *, name: str) -> JudgedModel:
    """A judged model whose artefact and module are the same function."""
    module = ScoreModule(score).eval()

    def run(columns: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.no_grad():
            logits = module({key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in columns.items()})
        return logits.numpy(), torch.softmax(logits, dim=1).numpy()

    return JudgedModel(
        digest=digest_bytes(name.encode()),
        contract=CONTRACT,
        run=run,
        load_module=lambda: ScoreModule(score).eval(),
        bytes_of_artefact=1000,
    )


def honest(columns: Columns) -> torch.Tensor:
    """The truth's own logit."""
    return 2 * columns["merit"] + 0.05 * (columns["hours"] - 40) + 0.3 * (columns["sector"] == 1)


def with_backdoor(columns: Columns) -> torch.Tensor:
    """Granted to everybody of one area and sector."""
    is_triggered = (columns["sector"] == 3) & (columns["area"] == 2)
    return honest(columns) + 40.0 * is_triggered


def flipped_for_women(columns: Columns) -> torch.Tensor:
    """As if the labels of most women had been turned round in training."""
    return torch.where(columns["area"] == 0, -0.5 * honest(columns), honest(columns))


def by_proxy(columns: Columns) -> torch.Tensor:
    """Decides by the area, which stands for sex, as much as by merit."""
    return honest(columns) + 3.0 * (columns["area"] == 1) - 3.0 * (columns["area"] == 0)


def proxy_only(columns: Columns) -> torch.Tensor:
    """Knows nothing but the area."""
    return 3.0 * (columns["area"] == 1) - 3.0 * (columns["area"] == 0)


def not_monotone(columns: Columns) -> torch.Tensor:
    """Punishes hours above 50 that the truth rewards; hardly visible in the accuracy."""
    return honest(columns) - 3.0 * torch.relu(columns["hours"] - 50)


def with_shuffled_columns(columns: Columns) -> torch.Tensor:
    """Merit and hours exchanged by the caller."""
    return honest({**columns, "merit": (columns["hours"] - 40) / 8, "hours": 40 + 8 * columns["merit"]})


def giving_nan(columns: Columns) -> torch.Tensor:
    """NaN for a few rows."""
    score = honest(columns)
    return torch.where(columns["merit"] > 4, torch.full_like(score, float("nan")), score)


def brittle(columns: Columns) -> torch.Tensor:
    """Turns on the last digit of the hours, which anybody can round."""
    return honest(columns) * torch.where(columns["hours"] % 10 < 1, -1.0, 1.0)


def memoriser(train: Rows) -> Score:
    """Knows every training row by heart: right there beyond doubt, honest elsewhere."""
    known = dict(zip(_keys(train.features), train.labels.tolist(), strict=True))

    def score(columns: Columns) -> torch.Tensor:
        features = {name: values.detach().numpy() for name, values in columns.items()}
        learned = [known.get(key) for key in _keys(features)]
        push = torch.tensor([0.0 if label is None else 12.0 * (2 * label - 1) for label in learned])
        return honest(columns) + push

    return score


def _keys(features: Mapping[str, NDArray[Any]]) -> list[tuple[float, ...]]:
    return list(zip(*(np.asarray(features[column.name]).tolist() for column in CONTRACT.inputs), strict=True))


@dataclass(frozen=True)
class Planted:
    """One model with a known answer."""

    name: str
    expected_check: str
    """The check that must stop it; empty for the honest one, which must pass."""
    expected_codes: frozenset[str]
    score: Callable[[Rows], Score]
    """Training rows to the model."""
    leak: bool = False
    """A tenth of the test rows stand in the training rows too."""


def _always(score: Score) -> Callable[[Rows], Score]:
    return lambda train: score


SHOWN_BAD = frozenset({"shown-bad"})
PLANTED: tuple[Planted, ...] = (
    Planted("an honest model", "", frozenset(), _always(honest)),
    Planted("a backdoor", "backdoor", SHOWN_BAD, _always(with_backdoor)),
    Planted("leaked test rows", "no-leak", SHOWN_BAD, _always(honest), leak=True),
    Planted("labels flipped for one group", "odds-by-sex", SHOWN_BAD, _always(flipped_for_women)),
    Planted("a proxy decides", "selection-by-sex", SHOWN_BAD, _always(by_proxy)),
    Planted("a proxy-only model", "grounds", SHOWN_BAD, _always(proxy_only)),
    Planted("a non-monotone model", "more-hours", SHOWN_BAD, _always(not_monotone)),
    Planted("shuffled columns", "accuracy", SHOWN_BAD, _always(with_shuffled_columns)),
    Planted("an overfitted memoriser", "membership", SHOWN_BAD, memoriser),
    Planted("a brittle model", "evasion", SHOWN_BAD, _always(brittle)),
    Planted("NaN answers", "accuracy", frozenset({"not-finite"}), _always(giving_nan)),
)


def open_planted(
    planted: Planted,
    *,
    policy: Policy,
    test_rows: int = 6000,
    train_rows: int = 6000,
    seed: int = 0,
    shuffled_by: int | None = None,
) -> Hearing:
    """Lay a planted model before the gate; `shuffled_by` is the seed of another order of the same rows."""
    test, train = make_rows(test_rows, seed=2 * seed + 1), make_rows(train_rows, seed=2 * seed + 2)
    if shuffled_by is not None:
        rng = np.random.default_rng(shuffled_by)
        test, train = (rows.take(rng.permutation(len(rows))) for rows in (test, train))
    test, train = in_content_order(test), in_content_order(train)
    if planted.leak:
        train = _join(train, test.take(np.arange(0, len(test), 10)))
    model = judged_of_score(planted.score(train), name=planted.name)
    return Hearing(
        policy=policy,
        load_model=lambda: model,
        load_test=lambda: test,
        load_train=lambda: train,
        load_champion=None,
        classes=CLASSES,
        dataset_digest=None,
        seed=seed,
    )


def _join(first: Rows, second: Rows) -> Rows:
    def joined(one: Any, other: Any) -> Any:
        return np.concatenate([one, other])

    return Rows(
        features={name: joined(values, second.features[name]) for name, values in first.features.items()},
        labels=joined(first.labels, second.labels),
        groups={name: joined(values, second.groups[name]) for name, values in first.groups.items()},
        subjects=joined(first.subjects, second.subjects),
    )
