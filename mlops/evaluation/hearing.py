"""What lies before the gate: the judged model, its rows and answers, computed once and shared by all checks.

Leaves to others: running the checks with their time limits (gate.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation.judged import Answers, JudgedModel, columns_as_tensors
from mlops.evaluation.policy import Policy
from mlops.evaluation.reference_membership import AuditPool
from mlops.evaluation.rows import Rows
from mlops.evaluation.twins import Twin
from mlops.evaluation.verdicts import NotEvaluableError

PARITY_ROWS = 4096


@dataclass
class Hearing:
    """Everything a check may look at. Checks run in several threads: each value is computed once, under a lock."""

    policy: Policy
    load_model: Callable[[], JudgedModel]
    load_test: Callable[[], Rows]
    load_train: Callable[[], Rows]
    load_champion: Callable[[], JudgedModel] | None
    classes: tuple[str, ...]
    """Class names in the order of the label's codes, as the dataset says."""
    dataset_digest: str | None
    """Version of the rows; None when the caller does not know it."""
    seed: int
    project_checks_folder: Path | None = None
    incidents_folder: Path | None = None
    audit: AuditPool | None = None
    twins: tuple[Twin, ...] = ()
    """Finished trials of the candidate's sweep, nearest to the winner first."""
    now_us: int = 0
    """For expiry of cases, waivers and statements only."""
    _kept: dict[str, Any] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)
    _locks: dict[str, Lock] = field(default_factory=dict)

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """`compute()`, or what it gave (or raised) the first time."""
        with self._lock:
            lock = self._locks.setdefault(key, Lock())
        with lock:
            if key not in self._kept:
                try:
                    self._kept[key] = (True, compute())
                except NotEvaluableError as error:
                    self._kept[key] = (False, error)
            is_good, value = self._kept[key]
        if not is_good:
            raise NotEvaluableError(value.code, value.text)
        return value

    @property
    def model(self) -> JudgedModel:
        """The judged model, after its contract was held against the dataset.

        Raises:
            NotEvaluableError: Unreadable, other classes or order of classes, or trained on another dataset version.
        """
        model: JudgedModel = self.once("model", self._verified_model)
        return model

    @property
    def test(self) -> Rows:
        """Rows that no training saw."""
        rows: Rows = self.once("test", self.load_test)
        return rows

    @property
    def train(self) -> Rows:
        """Rows of the training split."""
        rows: Rows = self.once("train", self.load_train)
        return rows

    @property
    def test_answers(self) -> Answers:
        """The artefact's answers on the test rows."""
        answers: Answers = self.once("test answers", lambda: self.model.answer(self.test.features))
        return answers

    @property
    def train_answers(self) -> Answers:
        """The artefact's answers on the training rows."""
        answers: Answers = self.once("train answers", lambda: self.model.answer(self.train.features))
        return answers

    @property
    def champion(self) -> JudgedModel | None:
        """The version in production, if there is one."""
        if self.load_champion is None:
            return None
        champion: JudgedModel = self.once("champion", self.load_champion)
        return champion

    @property
    def favourable(self) -> int:
        """Code of the favourable class.

        Raises:
            NotEvaluableError: The dataset has no such class.
        """
        if self.policy.favourable_class not in self.classes:
            raise NotEvaluableError(
                "no-favourable-class",
                f"favourable_class {self.policy.favourable_class!r} is not among {', '.join(self.classes)}",
            )
        return self.classes.index(self.policy.favourable_class)

    def seed_of(self, purpose: str) -> int:
        """A seed that depends on the gate's seed and the purpose, never on the order of checks."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}:{purpose}".encode()).digest()[:4], "big")

    def parity(self) -> tuple[float, int]:
        """Largest difference of probabilities between artefact and module, and on how many rows."""
        found: tuple[float, int] = self.once("parity", self._measure_parity)
        return found

    def require_parity(self) -> None:
        """Attacks on the module say something about the artefact only if both answer alike.

        Raises:
            NotEvaluableError: They do not.
        """
        difference, _ = self.parity()
        if not difference <= 1e-3:
            raise NotEvaluableError(
                "parity-broken", f"module and model.onnx differ by {difference:.3g}: attacks would hit another model"
            )

    def _verified_model(self) -> JudgedModel:
        model = self.load_model()
        if model.contract.classes != self.classes:
            raise NotEvaluableError(
                "wrong-class-order",
                f"the model's classes are {', '.join(model.contract.classes)}; "
                f"the dataset says {', '.join(self.classes)}",
            )
        trained_on = model.contract.dataset.digest
        if self.dataset_digest is not None and trained_on != self.dataset_digest:
            raise NotEvaluableError(
                "stale-dataset",
                f"trained on dataset {trained_on[7:19]}, the rows here are of version {self.dataset_digest[7:19]}",
            )
        return model

    def _measure_parity(self) -> tuple[float, int]:
        import torch  # costs seconds to load

        rows = self.test.sample(PARITY_ROWS, seed=self.seed_of("parity"))
        expected = self.model.answer(rows.features).probabilities
        try:
            module = self.model.load_module()
            with torch.no_grad():
                logits = module(columns_as_tensors(rows, contract=self.model.contract))
            found: NDArray[np.float32] = torch.softmax(logits.float(), dim=-1).numpy()
        except Exception as error:
            raise NotEvaluableError("module-crashed", f"the torch module does not run: {error}") from error
        if found.shape != expected.shape or not np.isfinite(found).all():
            raise NotEvaluableError("module-not-finite", "the torch module gives NaN or another shape than model.onnx")
        return float(np.abs(found - expected).max()), len(rows)
