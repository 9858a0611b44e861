"""Poisoning: do training rows stand apart inside the model, as rows with a planted trigger do?

Two screens over the activations before the last layer, class by class: activation clustering (Chen et al., 2018)
splits a class in two and looks at a small, well separated part (as ART does, whose analyser crashes under NumPy 2 when
no part is small, and whose clustering has no seed); ART's spectral signatures (Tran, Li & Mądry, NeurIPS 2018) look at
rows far out along the first singular direction. ART marks a fixed share of clean rows; here a row counts only when its
part is small and apart, or it lies far beyond its class. Leaves to others: triggers in the inputs (backdoor.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation.checks.behaviour import claim_at_most
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.judged import columns_as_tensors
from mlops.evaluation.libraries import prepare_art
from mlops.evaluation.rows import Rows
from mlops.evaluation.screen_rules import PoisoningRule
from mlops.evaluation.verdicts import Claim, Findings, NotEvaluableError

if TYPE_CHECKING:
    import torch

SMALL_PART = 0.35
"""Of a class: ART's own threshold for a suspicious part."""
SEPARATED = 0.5
"""Silhouette from which on two parts count as apart; clean classes measured here have less than 0.4."""
FAR = 6.0
"""Robust deviations from the class's median; a normal tail holds one row in a hundred million."""


def check_poisoning(rule: PoisoningRule, hearing: Hearing) -> Findings:
    """Share of training rows that stand apart, by either screen.

    Raises:
        NotEvaluableError: The module has no linear last layer to look before, or module and artefact differ.
    """
    hearing.require_parity()
    rows = hearing.train.sample(rule.rows, seed=hearing.seed_of(rule.name))
    activations = read_activations(hearing, rows)
    flagged = {"activation clustering": np.zeros(len(rows), bool), "spectral signatures": np.zeros(len(rows), bool)}
    table = []
    for code, name in enumerate(hearing.classes):
        inside = np.flatnonzero(rows.labels == code)
        if inside.size < 50:
            continue
        clustered, silhouette, part = _cluster(activations[inside], seed=hearing.seed_of(rule.name))
        far = _far_out(activations[inside])
        flagged["activation clustering"][inside[clustered]] = True
        flagged["spectral signatures"][inside[far]] = True
        table.append({"class": name, "silhouette": silhouette, "small_part": part, "far_out": int(far.sum())})
    if not table:
        raise NotEvaluableError("too-few-rows", "no class has 50 training rows to look at")
    claims: list[Claim] = []
    for screen, is_flagged in flagged.items():
        text = f"training rows that stand apart, {int(is_flagged.sum()):,} of {len(rows):,}"
        claims.append(claim_at_most(screen, is_flagged, maximum=rule.maximum, alpha=hearing.policy.alpha, text=text))
    return Findings(tuple(claims), {"poisoning": table})


def read_activations(hearing: Hearing, rows: Rows) -> NDArray[np.float64]:
    """What the last linear layer gets of each row, `[N, D]`.

    Raises:
        NotEvaluableError: The module has no linear layer.
    """
    import torch  # costs seconds to load

    module = hearing.model.load_module()
    layers = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    if not layers:
        raise NotEvaluableError("no-linear-layer", "the module ends in no linear layer, so there is nothing before it")
    seen: list[torch.Tensor] = []

    def keep(_layer: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0].detach().reshape(len(inputs[0]), -1))

    handle = layers[-1].register_forward_pre_hook(keep)
    try:
        with torch.no_grad():
            module(columns_as_tensors(rows, contract=hearing.model.contract))
    finally:
        handle.remove()
    found = torch.cat(seen).double().numpy()
    if found.shape[0] != len(rows):
        raise NotEvaluableError("no-linear-layer", "the last linear layer does not see one vector a row")
    return found


def _cluster(activations: NDArray[np.float64], *, seed: int) -> tuple[NDArray[np.bool_], float, float]:
    """Rows of the smaller part when it is small and apart; silhouette and share of that part."""
    from sklearn.cluster import KMeans  # slow to load
    from sklearn.decomposition import PCA
    from sklearn.metrics import silhouette_score

    narrow = PCA(n_components=min(10, activations.shape[1]), random_state=seed % 2**31).fit_transform(activations)
    parts = KMeans(n_clusters=2, n_init=4, random_state=seed % 2**31).fit_predict(narrow)
    if len(np.unique(parts)) < 2:
        return np.zeros(len(parts), dtype=bool), 0.0, 0.0
    silhouette = float(silhouette_score(narrow, parts, sample_size=1000, random_state=0))
    small = int(np.bincount(parts).argmin())
    share = float((parts == small).mean())
    return (parts == small) & (silhouette >= SEPARATED and share <= SMALL_PART), silhouette, share


def _far_out(activations: NDArray[np.float64]) -> NDArray[np.bool_]:
    prepare_art()
    from art.defences.detector.poison import SpectralSignatureDefense  # slow to load

    scores = np.asarray(SpectralSignatureDefense.spectral_signature_scores(activations)).ravel()
    spread = 1.4826 * float(np.median(np.abs(scores - np.median(scores))))
    return scores > np.median(scores) + FAR * max(spread, 1e-12)
