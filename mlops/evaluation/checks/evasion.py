"""Adversarial inputs: how often can a person, by what a person can change, turn a right answer into a wrong one?

Attacks see the torch module (white box, parity checked first); a success counts only when the decoded, valid row makes
the exported artefact itself answer wrongly. A row is robust if no attack succeeds. Leaves to others: the constraint
(attack_surface.py) and our own batched attacks (torch_attacks.py).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation.checks.quality import claim_at_least
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.policy import EvasionRule
from mlops.evaluation.verdicts import Findings, NotEvaluableError

if TYPE_CHECKING:
    from mlops.evaluation.attack_surface import RelaxedModel, Surface

Floats = NDArray[np.float32]
Attack = Callable[["RelaxedModel", "Surface", NDArray[np.int64], EvasionRule, int], Floats]


def check_evasion(rule: EvasionRule, hearing: Hearing) -> Findings:
    """Robust accuracy under the worst of the attacks, per row, with an exact lower bound."""
    from mlops.evaluation.attack_surface import RelaxedModel, plan_surface  # loads torch, which costs seconds

    hearing.require_parity()
    rows = hearing.test.sample(rule.rows, seed=hearing.seed_of(rule.name))
    contract = hearing.model.contract
    surface = plan_surface(rows, contract=contract, changes=rule.changes)
    is_right = hearing.model.answer(rows.features).classes == rows.labels
    is_robust = is_right.copy()
    table: list[dict[str, Any]] = [{"attack": "none", "accuracy": float(is_right.mean())}]
    for name in rule.attacks:
        relaxed = RelaxedModel(hearing.model.load_module(), surface, contract=contract).eval()
        try:
            flat = ATTACKS[name](relaxed, surface, rows.labels, rule, hearing.seed_of(f"{rule.name}:{name}"))
        except NotEvaluableError:
            raise
        except Exception as error:
            raise NotEvaluableError("attack-crashed", f"{name} crashed: {error}") from error
        features = surface.decode(flat)
        chosen = np.rint(flat[:, 0]).astype(np.int64)
        if surface.count_infeasible(features, chosen=chosen):
            raise NotEvaluableError("attack-infeasible", f"{name} left the changes that a person could make")
        survives = hearing.model.answer(features).classes == rows.labels[chosen]
        holds = is_right.copy()
        np.logical_and.at(holds, chosen, survives)
        table.append({"attack": name, "accuracy": float(holds.mean())})
        is_robust &= holds
    table.append({"attack": "worst of all", "accuracy": float(is_robust.mean())})
    claim = claim_at_least("worst of all attacks", is_robust, minimum=rule.minimum, alpha=hearing.policy.alpha)
    return Findings(
        (claim,), {"attacks": table, "changes": [change.model_dump(mode="json") for change in rule.changes]}
    )


def _run_art(
    kind: str, relaxed: RelaxedModel, surface: Surface, labels: NDArray[np.int64], rule: EvasionRule
) -> Floats:
    """FGSM or PGD of the Adversarial Robustness Toolbox, held inside the surface by mask, clipping and radius."""
    import torch
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent  # slow to load
    from art.estimators.classification import PyTorchClassifier

    logging.getLogger("art").setLevel(logging.ERROR)
    flat, radius = surface.encode(), np.maximum(surface.radius, 1e-6)  # ART refuses zero; the mask holds the row number
    classes = int(relaxed(torch.from_numpy(flat[:1])).shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ART warns about types it casts itself
        classifier = PyTorchClassifier(
            model=relaxed,
            loss=torch.nn.CrossEntropyLoss(),
            input_shape=(surface.width,),
            nb_classes=classes,
            clip_values=surface.limits,
            device_type="cpu",
        )
        shared = {"estimator": classifier, "norm": np.inf, "eps": radius, "batch_size": 1024}
        if kind == "fgsm":
            attack = FastGradientMethod(**shared, eps_step=radius)
        else:
            attack = ProjectedGradientDescent(
                **shared, eps_step=radius * (2.5 / rule.steps), max_iter=rule.steps, num_random_init=0, verbose=False
            )
        found: Floats = attack.generate(
            flat, y=np.eye(classes, dtype=np.float32)[labels], mask=(surface.radius > 0).astype(np.float32)
        )
    found[:, 0] = flat[:, 0]
    return found


def _fgsm(relaxed: RelaxedModel, surface: Surface, labels: NDArray[np.int64], rule: EvasionRule, _seed: int) -> Floats:
    return _run_art("fgsm", relaxed, surface, labels, rule)


def _pgd(relaxed: RelaxedModel, surface: Surface, labels: NDArray[np.int64], rule: EvasionRule, _seed: int) -> Floats:
    return _run_art("pgd", relaxed, surface, labels, rule)


ATTACKS: dict[str, Attack] = {"fgsm": _fgsm, "pgd": _pgd}
