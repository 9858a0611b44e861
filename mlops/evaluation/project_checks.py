"""A project's own checks: functions in `evaluation/checks/*.py`, loaded by path, never by package name.

A function takes `ProjectEvidence` and the rule's parameters and returns claims; the gate makes the verdict, so a
project cannot pass anything by itself. Leaves to others: deciding (decisions.py), time limits (gate.py).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation.checks.behaviour import claim_at_most
from mlops.evaluation.checks.quality import claim_at_least
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.judged import Answers
from mlops.evaluation.policy import ProjectRule
from mlops.evaluation.rows import Rows
from mlops.evaluation.verdicts import Claim, Findings, NotEvaluableError


@dataclass(frozen=True)
class ProjectEvidence:
    """What a project's check may look at."""

    rows: Rows
    """Test rows."""
    answers: Answers
    """The artefact's answers on them."""
    classes: tuple[str, ...]
    alpha: float
    seed: int
    answer: Callable[[Mapping[str, NDArray[Any]]], Answers]
    """The artefact on other features."""

    def at_least(self, name: str, is_good: NDArray[np.bool_], minimum: float) -> Claim:
        """The claim that the rate of `is_good` is at least `minimum`."""
        return claim_at_least(name, is_good, minimum=minimum, alpha=self.alpha)

    def at_most(self, name: str, is_bad: NDArray[np.bool_], maximum: float) -> Claim:
        """The claim that the rate of `is_bad` is at most `maximum`."""
        return claim_at_most(name, is_bad, maximum=maximum, alpha=self.alpha)


def check_project(rule: ProjectRule, hearing: Hearing) -> Findings:
    """Run a project's function.

    Raises:
        NotEvaluableError: There is no such function, or it returns something else than claims.
    """
    function = _load_function(rule.function, folder=hearing.project_checks_folder)
    evidence = ProjectEvidence(
        rows=hearing.test,
        answers=hearing.test_answers,
        classes=hearing.classes,
        alpha=hearing.policy.alpha,
        seed=hearing.seed_of(rule.name),
        answer=hearing.model.answer,
    )
    claims = tuple(function(evidence, **rule.parameters))
    if not all(isinstance(claim, Claim) for claim in claims):
        raise NotEvaluableError("not-claims", f"{rule.function} must return claims; use evidence.at_least and at_most")
    return Findings(claims)


GROUP = "mlops.gate_checks"


def _load_entry_point(name: str) -> Callable[..., Any]:
    """The function that an installed package offers under this name; one that does not load says why itself."""
    found = list(metadata.entry_points(group=GROUP, name=name))
    if len(found) != 1:
        raise NotEvaluableError("check-missing", f"{len(found)} installed packages offer {name!r} in {GROUP}, not one")
    try:
        function = found[0].load()
    except Exception as error:  # a package's import may raise anything
        raise NotEvaluableError("check-missing", f"{found[0].value} does not load: {error}") from error
    if not callable(function):
        raise NotEvaluableError("check-missing", f"{found[0].value} is no function")
    offered: Callable[..., Any] = function
    return offered


def _load_function(reference: str, *, folder: Path | None) -> Callable[..., Any]:
    file, _, name = reference.partition(":")
    if file == "package":
        return _load_entry_point(name)
    path = None if folder is None else folder / file
    if path is None or not path.is_file():
        raise NotEvaluableError("check-missing", f"there is no evaluation/checks/{file}")
    spec = importlib.util.spec_from_file_location(f"project_check_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise NotEvaluableError("check-missing", f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise NotEvaluableError("check-missing", f"{path} has no function {name}")
    found: Callable[..., Any] = function
    return found
