"""Model inversion: does climbing an answer from nowhere give a likeness of the people that were trained on?

From the middle of all rows the numbers and pixels climb each class's probability by gradient, inside what the training
rows reach; the result is held against the mean row of the class. A likeness of the mean is expected of any
good model of images, so this advises. Source: Fredrikson et al., CCS 2015 (ART's MIFace does the same on flat arrays).
Leaves to others: finding single rows (membership.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation.checks.artefact import state_fact
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.privacy_rules import InversionRule
from mlops.evaluation.rows import Rows
from mlops.evaluation.verdicts import Findings, NotEvaluableError

LEAST_NUMBERS = 8
"""A correlation over fewer numbers says nothing."""
Floats = NDArray[np.float64]


def check_inversion(rule: InversionRule, hearing: Hearing) -> Findings:
    """Correlation of each class's inversion with the class's mean, both as differences from the mean of all rows.

    Raises:
        NotEvaluableError: Too few numbers among the inputs, or module and artefact differ.
    """
    hearing.require_parity()
    rows = hearing.train.sample(5000, seed=hearing.seed_of(rule.name))
    names = [name for name, values in sorted(rows.features.items()) if values.dtype.kind == "f"]
    flat = {name: rows.features[name].reshape(len(rows), -1).astype(np.float64) for name in names}
    if sum(values.shape[1] for values in flat.values()) < LEAST_NUMBERS:
        raise NotEvaluableError("too-few-columns", f"fewer than {LEAST_NUMBERS} numbers among the inputs: no likeness")
    claims, table = [], []
    for code, name in enumerate(hearing.classes):
        inside = rows.labels == code
        if not inside.any():
            continue
        found = invert_class(hearing, rows, code=code, steps=rule.steps)
        likeness = _likeness(found, flat, inside=inside)
        table.append({"class": name, "correlation": likeness})
        claims.append(
            state_fact(name, likeness, maximum=rule.maximum, n=int(inside.sum()), is_good=likeness <= rule.maximum)
        )
    return Findings(tuple(claims), {"inversion": table})


def _likeness(found: dict[str, Floats], flat: dict[str, Floats], *, inside: NDArray[np.bool_]) -> float:
    moved, meant = [], []
    for name, values in flat.items():
        middle, spread = values.mean(axis=0), values.std(axis=0)
        scale = np.where(spread > 1e-9, spread, np.inf)  # what never changes resembles nothing
        moved.append((found[name] - middle) / scale)
        meant.append((values[inside].mean(axis=0) - middle) / scale)
    first, second = np.concatenate(moved), np.concatenate(meant)
    if first.std() < 1e-12 or second.std() < 1e-12:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def invert_class(hearing: Hearing, rows: Rows, *, code: int, steps: int) -> dict[str, Floats]:
    """The numbers that climb to class `code` from the mean row; categories stay at their commonest value."""
    import torch  # costs seconds to load

    module = hearing.model.load_module()
    low, high, start, fixed = {}, {}, {}, {}
    for name, values in rows.features.items():
        if values.dtype.kind != "f":
            fixed[name] = torch.tensor([int(np.bincount(values).argmax())])
            continue
        low[name], high[name] = (torch.from_numpy(np.quantile(values, share, axis=0)).float() for share in (0.01, 0.99))
        start[name] = torch.from_numpy(np.asarray(values.mean(axis=0, dtype=np.float64))).float()
    points = {name: value.clone().unsqueeze(0).requires_grad_(True) for name, value in start.items()}
    for _ in range(steps):
        logits = module({**points, **fixed})
        gradients = torch.autograd.grad(
            logits.log_softmax(1)[0, code], list(points.values()), allow_unused=True, materialize_grads=True
        )
        with torch.no_grad():
            for (name, point), gradient in zip(points.items(), gradients, strict=True):
                width = (high[name] - low[name]).clamp(min=1e-9)
                uphill = gradient * width
                point.add_(0.02 * width * uphill / uphill.abs().max().clamp(min=1e-12)).clamp_(low[name], high[name])
    return {name: point.detach().numpy().reshape(-1).astype(np.float64) for name, point in points.items()}
