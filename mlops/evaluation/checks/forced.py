"""Forced predictions: can a person turn a no into the answer they want, by what a person can change?

The targeted counterpart of evasion: PGD with restarts, APGD and a black-box search climb the wanted answer; a success
counts only when the decoded, valid row makes the artefact itself give it. Leaves to others: any wrong answer
(evasion.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation.checks.behaviour import claim_at_most
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.screen_rules import ForcedRule
from mlops.evaluation.verdicts import Findings, NotEvaluableError

if TYPE_CHECKING:
    import torch

    from mlops.evaluation.attack_surface import Surface


def check_forced(rule: ForcedRule, hearing: Hearing) -> Findings:
    """Share of rows answered otherwise that any attack turns to the wanted answer.

    Raises:
        NotEvaluableError: No such class, no row answered otherwise, or module and artefact differ.
    """
    from mlops.evaluation.attack_surface import plan_surface  # loads torch, which costs seconds

    hearing.require_parity()
    wanted = _wanted(rule, hearing)
    rows = hearing.test.sample(rule.rows, seed=hearing.seed_of(rule.name))
    rows = rows.take(hearing.model.answer(rows.features).classes != wanted)
    if len(rows) == 0:
        raise NotEvaluableError("no-rows", f"every row is answered {hearing.classes[wanted]!r}: nothing to force")
    constraints = hearing.policy.constraints
    surface = plan_surface(rows, contract=hearing.model.contract, changes=rule.changes, constraints=constraints)
    shares, is_forced = {}, np.zeros(len(rows), dtype=bool)
    for name, flat in _attack(rule, hearing, surface, wanted=wanted).items():
        features = surface.decode(flat)
        if surface.count_infeasible(features, chosen=np.arange(len(rows))):
            raise NotEvaluableError("attack-infeasible", f"{name} left the changes that a person could make")
        succeeds = hearing.model.answer(features).classes == wanted
        shares[name] = float(succeeds.mean())
        is_forced |= succeeds
    text = f"rows turned to {hearing.classes[wanted]!r} by any of {', '.join(shares)}"
    claim = claim_at_most("forced", is_forced, maximum=rule.maximum, alpha=hearing.policy.alpha, text=text)
    return Findings(
        (claim,), {"forced": shares, "changes": [change.model_dump(mode="json") for change in rule.changes]}
    )


def _wanted(rule: ForcedRule, hearing: Hearing) -> int:
    if not rule.towards:
        return hearing.favourable
    if rule.towards not in hearing.classes:
        raise NotEvaluableError("class-missing", f"there is no class {rule.towards!r} to force")
    return hearing.classes.index(rule.towards)


def _attack(rule: ForcedRule, hearing: Hearing, surface: Surface, *, wanted: int) -> dict[str, NDArray[np.float32]]:
    """Each attack's vectors, `[N, width]`; the model as two classes: anything else against the wanted one."""
    import torch

    from mlops.evaluation import torch_attacks as own
    from mlops.evaluation.attack_surface import RelaxedModel

    relaxed = RelaxedModel(hearing.model.load_module(), surface, contract=hearing.model.contract).eval()

    def two(logits: torch.Tensor) -> torch.Tensor:
        others = logits.clone()
        others[:, wanted] = -torch.inf
        return torch.stack([others.max(dim=1).values, logits[:, wanted]], dim=1)

    def white(flat: torch.Tensor) -> torch.Tensor:
        return two(relaxed(flat))

    def black(flat: torch.Tensor) -> torch.Tensor:
        return two(torch.from_numpy(hearing.model.answer(surface.decode(flat.numpy())).logits))

    flat = torch.from_numpy(surface.encode())
    low, high = (torch.from_numpy(side) for side in surface.row_limits())
    box = own.box_around(flat, radius=torch.from_numpy(surface.radius), low=low, high=high)
    otherwise = torch.zeros(len(flat), dtype=torch.int64)
    steps, dice = rule.steps, torch.Generator().manual_seed(hearing.seed_of(rule.name))
    found = {
        "pgd": own.attack_pgd(white, box, otherwise, steps=steps, restarts=2, generator=dice),
        "apgd": own.attack_apgd(white, box, otherwise, steps=steps, restarts=0, generator=dice, loss=own.cross_entropy),
        "random search": own.attack_by_search(black, box, otherwise, queries=4 * steps, generator=dice),
    }
    return {name: vectors.numpy() for name, vectors in found.items()}
