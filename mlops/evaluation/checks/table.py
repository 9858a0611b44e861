"""Which function runs a kind of check. Leaves to others: everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlops.evaluation.checks import (
    artefact,
    attributes,
    backdoor,
    behaviour,
    champion,
    evasion,
    explainability,
    explained_membership,
    exposure,
    extraction,
    fairness,
    forced,
    inversion,
    library_membership,
    mean_gaps,
    membership,
    poisoning,
    quality,
    weak_slices,
)
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.incident_cases import check_incidents
from mlops.evaluation.project_checks import check_project
from mlops.evaluation.reference_membership import check_reference_membership
from mlops.evaluation.verdicts import Findings

CHECKS: dict[str, Callable[[Any, Hearing], Findings]] = {
    "loss": quality.check_loss,
    "accuracy": quality.check_accuracy,
    "auc": quality.check_auc,
    "calibration": quality.check_calibration,
    "selection-rate-gap": fairness.check_gap,
    "equalized-odds-gap": fairness.check_gap,
    "equal-opportunity-gap": fairness.check_gap,
    "mean-gap": mean_gaps.check_mean_gap,
    "evasion": evasion.check_evasion,
    "membership": membership.check_membership,
    "champion": champion.check_champion,
    "project": check_project,
    "incidents": check_incidents,
    "reference-membership": check_reference_membership,
    "parity": artefact.check_parity,
    "size": artefact.check_size,
    "overlap": artefact.check_overlap,
    "monotone": behaviour.check_monotone,
    "invariance": behaviour.check_invariance,
    "direction": behaviour.check_direction,
    "functionality": behaviour.check_functionality,
    "attribution": explainability.check_attribution,
    "arbitrary-decisions": explainability.check_arbitrary_decisions,
    "backdoor": backdoor.check_backdoor,
    "weak-slices": weak_slices.check_weak_slices,
    "forced": forced.check_forced,
    "poisoning": poisoning.check_poisoning,
    "extraction": extraction.check_extraction,
    "latency": artefact.check_latency,
    "attribute-inference": attributes.check_attribute_inference,
    "exposure": exposure.check_exposure,
    "inversion": inversion.check_inversion,
    "explanation-membership": explained_membership.check_explanation_membership,
    "library-membership": library_membership.check_library_membership,
}
