"""Adversarial inputs: how often can a person, by what a person can change, turn a right answer into a wrong one?

Attacks see the torch module (white box, parity checked first); a success counts only when the decoded, valid row makes
the exported artefact itself answer wrongly. A row is robust if no attack succeeds. Leaves to others: the constraint
(attack_surface.py) and our own batched attacks (torch_attacks.py).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation.checks.quality import claim_at_least
from mlops.evaluation.checks.radius import robust_over_radius
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.libraries import prepare_art
from mlops.evaluation.policy import EvasionRule
from mlops.evaluation.verdicts import Findings, NotEvaluableError

if TYPE_CHECKING:
    from mlops.evaluation.attack_surface import RelaxedModel, Surface
    from mlops.evaluation.judged import JudgedModel
    from mlops.evaluation.torch_attacks import Box

Floats = NDArray[np.float32]
BLACK_BOX = frozenset({"random-search"})
MASKING_SHARE = 0.10
"""Share of rightly answered rows from which on a disagreement of attacks is an alarm."""


@dataclass(frozen=True)
class Target:
    """What an attack gets."""

    relaxed: RelaxedModel
    surface: Surface
    labels: NDArray[np.int64]
    model: JudgedModel
    rule: EvasionRule
    seed: int


def check_evasion(rule: EvasionRule, hearing: Hearing) -> Findings:
    """Robust accuracy under the worst of the attacks, per row, with an exact lower bound."""
    from mlops.evaluation.attack_surface import plan_surface  # loads torch, which costs seconds

    hearing.require_parity()
    rows = hearing.test.sample(rule.rows, seed=hearing.seed_of(rule.name))
    constraints = hearing.policy.constraints
    surface = plan_surface(rows, contract=hearing.model.contract, changes=rule.changes, constraints=constraints)
    is_right = hearing.model.answer(rows.features).classes == rows.labels
    holds: dict[str, NDArray[np.bool_]] = {}
    for name in rule.attacks:
        holds[name] = is_right & _survives(name, rule, hearing, surface)
    is_robust = np.logical_and.reduce([is_right, *holds.values()])
    shares = {"none": is_right, **holds, "worst of all": is_robust}
    claim = claim_at_least("worst of all attacks", is_robust, minimum=rule.minimum, alpha=hearing.policy.alpha)
    alarm = _masking_alarm(holds, is_right=is_right)
    if alarm:
        claim = replace(claim, code="gradient-masking", text=alarm)
    details = {
        "attacks": [{"attack": name, "accuracy": float(mask.mean())} for name, mask in shares.items()],
        "changes": [change.model_dump(mode="json") for change in rule.changes],
        "over_radius": robust_over_radius(rule, hearing, survives=partial(_survives, "pgd-restarts", rule, hearing)),
    }
    return Findings((claim,), details)


def _survives(name: str, rule: EvasionRule, hearing: Hearing, surface: Surface) -> NDArray[np.bool_]:
    """Rows that the artefact still answers rightly after one attack, decoded to valid rows."""
    from mlops.evaluation.attack_surface import RelaxedModel

    relaxed = RelaxedModel(hearing.model.load_module(), surface, contract=hearing.model.contract).eval()
    target = Target(relaxed, surface, surface.rows.labels, hearing.model, rule, hearing.seed_of(f"{rule.name}:{name}"))
    try:
        flat = ATTACKS[name](target)
    except NotEvaluableError:
        raise
    except Exception as error:
        raise NotEvaluableError("attack-crashed", f"{name} crashed: {error}") from error
    features = surface.decode(flat)
    if surface.count_infeasible(features, chosen=np.arange(len(surface.rows))):
        raise NotEvaluableError("attack-infeasible", f"{name} left the changes that a person could make")
    survives: NDArray[np.bool_] = hearing.model.answer(features).classes == surface.rows.labels
    return survives


def _masking_alarm(holds: Mapping[str, NDArray[np.bool_]], *, is_right: NDArray[np.bool_]) -> str:
    """Says so when gradients look useless, because then the white-box numbers mean little; empty when they do not.

    Source: Athalye et al., ICML 2018, and the flags of AutoAttack: black box beating white box, one step beating many.
    """
    white = [holds[name] for name in holds if name not in BLACK_BOX]
    black = [holds[name] for name in holds if name in BLACK_BOX]
    if white and black:
        only_black = np.logical_and.reduce(white) & ~np.logical_and.reduce(black)
        share = float(only_black.sum() / max(int(is_right.sum()), 1))
        if share > MASKING_SHARE:
            return f"{share:.0%} of the rows fall to the black box only: the gradients hide something"
    if {"fgsm", "pgd"} <= set(holds):
        share = float((holds["pgd"] & ~holds["fgsm"]).sum() / max(int(is_right.sum()), 1))
        if share > MASKING_SHARE:
            return f"{share:.0%} of the rows fall to one step but not to many: the gradients mislead"
    return ""


def _run_art(kind: str, target: Target) -> Floats:
    """FGSM or PGD of the Adversarial Robustness Toolbox, held inside the surface by mask, clipping and radius."""
    prepare_art()
    import torch
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent  # slow to load
    from art.estimators.classification import PyTorchClassifier

    logging.getLogger("art").setLevel(logging.ERROR)
    relaxed, surface, labels, rule = target.relaxed, target.surface, target.labels, target.rule
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


def _boxed(target: Target) -> Box:
    """The surface as a box around each flat vector."""
    import torch

    from mlops.evaluation.torch_attacks import box_around

    flat = torch.from_numpy(target.surface.encode())
    low, high = (torch.from_numpy(side) for side in target.surface.row_limits())
    return box_around(flat, radius=torch.from_numpy(target.surface.radius), low=low, high=high)


def _own(attack: str, target: Target) -> Floats:
    """One of our batched attacks on the relaxed module, or on the decoded artefact for the black box."""
    import torch

    from mlops.evaluation import torch_attacks as own

    labels, steps = torch.from_numpy(target.labels), target.rule.steps
    generator = torch.Generator().manual_seed(target.seed)
    box = _boxed(target)

    def artefact(flat: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(target.model.answer(target.surface.decode(flat.numpy())).logits)

    if attack == "random-search":
        found = own.attack_by_search(artefact, box, labels, queries=4 * steps, generator=generator)
    elif attack == "pgd-restarts":
        found = own.attack_pgd(target.relaxed, box, labels, steps=steps, restarts=2, generator=generator)
    else:
        loss = own.cross_entropy if attack == "apgd-ce" else own.targeted_ratio
        targets = 0 if attack == "apgd-ce" else 9
        found = own.attack_apgd(
            target.relaxed, box, labels, steps=steps, restarts=0, generator=generator, loss=loss, targets=targets
        )
    vectors: Floats = found.numpy()
    return vectors


ATTACKS: dict[str, Callable[[Target], Floats]] = {
    "fgsm": partial(_run_art, "fgsm"),
    "pgd": partial(_run_art, "pgd"),
    "pgd-restarts": partial(_own, "pgd-restarts"),
    "apgd-ce": partial(_own, "apgd-ce"),
    "apgd-dlr": partial(_own, "apgd-dlr"),
    "random-search": partial(_own, "random-search"),
}
