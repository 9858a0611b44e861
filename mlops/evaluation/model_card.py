"""The model card: what a version is for, how it was judged, where it falls short; Markdown from the gate's result.

Follows the headings of Mitchell et al., Model Cards for Model Reporting (FAT* 2019); every number is a claim with its
bounds. Leaves to others: the report with plots (report.py), where the card is kept (store.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlops.evaluation.policy import Policy
from mlops.evaluation.report import group_by_family
from mlops.evaluation.verdicts import CheckResult, GateResult, Verdict
from mlops.evaluation.wording import describe_claim, explain_check, headline

if TYPE_CHECKING:
    from mlops.training.contract import Contract


def describe_model(policy: Policy, contract: Contract) -> dict[str, Any]:
    """What the card says about the model itself: JSON, kept in the result's context."""
    return {
        "purpose": policy.purpose,
        "not_for": policy.not_for,
        "dataset": {"name": contract.dataset.name, "digest": contract.dataset.digest},
        "classes": list(contract.classes),
        "favourable": policy.favourable_class,
        "inputs": [{"name": column.name, "kind": column.kind} for column in contract.inputs],
    }


def render_card(result: GateResult) -> str:
    """The card; it holds nothing that the result does not hold."""
    model = result.context.get("model") or {}
    rows = result.settings.get("rows", {})
    lines = [f"# Model card: {result.product}", "", f"**{result.verdict.value}** – {headline(result)}", ""]
    lines += ["## Model details", f"- candidate `{result.candidate}`", f"- policy `{result.policy}`"]
    lines += [f"- gate result `{result.digest}`"]
    if model:
        inputs = ", ".join(f"{column['name']} ({column['kind']})" for column in model["inputs"])
        lines += [f"- inputs: {inputs}", f"- answers: {', '.join(model['classes'])}; wanted: {model['favourable']}"]
    lines += ["", "## Intended use", model.get("purpose") or "The policy states no `purpose`."]
    lines += ["", "### Out of scope", model.get("not_for") or "The policy states no `not_for`."]
    lines += ["", "## Data"]
    if model:
        lines.append(f"- dataset {model['dataset']['name']} `{model['dataset']['digest']}`")
    lines += [f"- judged on {rows.get('test', 0):,} test rows that no training saw", ""]
    for title, checks in group_by_family(result):
        lines += [f"## {title}", *(_line(check) for check in checks), ""]
    lines += ["## Caveats", *(_caveats(result) or ["Every check of the policy is shown to hold."])]
    return "\n".join(lines) + "\n"


def _line(check: CheckResult) -> str:
    judged = check.leading
    measured = explain_check(check) if judged is None else describe_claim(judged, kind=check.kind)
    return f"- {check.title}: **{check.verdict.value}**. {measured}"


def _caveats(result: GateResult) -> list[str]:
    return [
        f"- {check.title} is {check.verdict.value}"
        + (f", and may be: {check.undecided_reason}" if check.undecided_reason else "")
        + ("" if check.is_blocking else " (advisory)")
        for check in result.checks
        if check.verdict is not Verdict.PASS
    ]
