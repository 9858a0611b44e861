"""The gate's answer for people: one HTML page without outside resources, and the same content for the terminal.

Top-down: verdict, why, what would change it, then the evidence. Leaves to others: words (wording.py), plots (plots.py),
and where the page is kept (store.py, mlops/registry).
"""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mlops.evaluation import plots
from mlops.evaluation.verdicts import CheckResult, GateResult, JudgedClaim, Verdict
from mlops.evaluation.wording import advise, describe_claim, explain_check, headline, show, suggest_change

ATTRIBUTIONS_SHOWN = 15
MARKS = {Verdict.PASS: "✓", Verdict.FAIL: "✗", Verdict.UNDECIDED: "?"}
FAMILIES: tuple[tuple[str, frozenset[str]], ...] = (
    ("Company values and law", frozenset({"value"})),
    ("Quality", frozenset({"accuracy", "loss", "auc", "calibration", "champion", "weak-slices"})),
    ("Fairness", frozenset({"selection-rate-gap", "equalized-odds-gap", "equal-opportunity-gap", "mean-gap"})),
    ("Behaviour", frozenset({"monotone", "direction", "invariance", "functionality", "incidents"})),
    ("Explanation", frozenset({"attribution", "arbitrary-decisions"})),
    ("Robustness", frozenset({"evasion", "forced", "backdoor", "poisoning", "extraction"})),
    (
        "Privacy",
        frozenset(
            {
                "membership",
                "reference-membership",
                "library-membership",
                "explanation-membership",
                "attribute-inference",
                "exposure",
                "inversion",
            }
        ),
    ),
    ("Artefact and data", frozenset()),
)
"""Headings of the report; the last one takes every kind that no other names."""


def render_report(result: GateResult, *, judged_at: str = "") -> str:
    """Self-contained HTML, with numbered headings of evidence below the verdict.

    Args:
        result: What the gate decided.
        judged_at: When, for the footer; not part of the result.
    """
    environment = Environment(
        loader=PackageLoader("mlops.evaluation", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    price = result.context.get("price_of_fairness")
    page = environment.get_template("gate.html.jinja").render(
        result=result,
        headline=headline(result),
        advice=advise(result),
        families=group_by_family(result),
        price=price,
        price_plot=Markup(plots.price(price["gaps"])) if price else "",  # noqa: S704 - our own SVG, its texts escaped
        judged_at=judged_at,
        marks=MARKS,
        explain=explain_check,
        describe=describe_claim,
        suggest=suggest_change,
        bar=_bar,
        figures=_figures,
        show=show,
    )
    return tie_units(page)


def tie_units(page: str) -> str:
    """No line of a page begins with the percent sign of a number on the line before."""
    return re.sub(r"(?<=\d) %", "\u00a0%", page)


def render_text(result: GateResult) -> str:
    """The same content as plain text."""
    lines = [f"{'GO' if result.is_go else 'NO GO'} ({result.verdict.value}): {headline(result)}", ""]
    lines.append(f"{result.product}, candidate {result.candidate[7:19]}, policy {result.policy[7:19]}")
    advice = advise(result)
    if advice:
        lines += ["", "What stands open, and what would change it"]
    for item in advice:
        let_through = "waived" if item.check.waiver else "reported"
        mark = "stops" if item.check.is_stopping else let_through if item.check.is_blocking else "advisory"
        lines.append(f"  {MARKS[item.check.verdict]} {item.check.title} ({item.check.verdict.value}, {mark})")
        lines += [f"      {item.why}", f"      → {item.change}"]
        if item.check.waiver:
            lines.append("      waived by {by} until {until}: {reason}".format(**item.check.waiver))
        if item.check.undecided_reason and item.check.verdict is Verdict.UNDECIDED:
            lines.append(f"      may go through because: {item.check.undecided_reason}")
    for family, checks in group_by_family(result):
        lines += ["", family]
        for check in checks:
            role = "" if check.is_blocking else "  (advisory)"
            lines.append(f"  {MARKS[check.verdict]} {check.verdict.value:9}  {check.title}{role}")
            lines.append(f"      {explain_check(check)}")
    price = result.context.get("price_of_fairness")
    if price:
        ours, plain = price["candidate"]["accuracy"], price["plain"]["accuracy"]
        lines += ["", f"Price of fairness: {show(ours, '')} right, a plain model {show(plain, '')}"]
    lines += ["", f"result {result.digest}"]
    return "\n".join(lines)


def group_by_family(result: GateResult) -> list[tuple[str, list[CheckResult]]]:
    """The checks under the report's headings, empty ones left out."""
    named = frozenset().union(*(kinds for _, kinds in FAMILIES))
    groups = [
        (title, [check for check in result.checks if check.kind in kinds or (not kinds and check.kind not in named)])
        for title, kinds in FAMILIES
    ]
    return [(title, checks) for title, checks in groups if checks]


def _bar(judged: JudgedClaim) -> Markup:
    evidence = judged.claim.evidence
    if evidence is None:
        return Markup("")
    return Markup(  # noqa: S704 - our own SVG
        plots.interval_bar(
            estimate=evidence.estimate,
            lower=evidence.lower,
            upper=evidence.upper,
            threshold=judged.claim.threshold,
            is_minimum=judged.claim.direction == "at least",
            verdict=judged.verdict.value,
        )
    )


def _figures(check: CheckResult) -> list[Markup]:
    """Plots of what a check measured beyond its claims."""
    details: dict[str, Any] = check.details
    drawn = []
    if details.get("by_group"):
        drawn.append(plots.group_intervals(details["by_group"], rates=details["rates"]))
    if details.get("attacks"):
        limit = check.claims[0].claim.threshold if check.claims else None
        drawn.append(plots.bars([(row["attack"], row["accuracy"]) for row in details["attacks"]], limit=limit))
    if details.get("over_radius"):
        limit = check.claims[0].claim.threshold if check.claims else None
        drawn.append(plots.over_radius(details["over_radius"], limit=limit))
    if details.get("attributions"):
        shown = details["attributions"][:ATTRIBUTIONS_SHOWN]
        drawn.append(plots.bars([(row["column"], row["share"]) for row in shown]))
    if details.get("twins"):
        drawn.append(
            plots.bars([(f"trial {row['trial']} decides otherwise", row["share"]) for row in details["twins"]])
        )
    if details.get("attack_roc"):
        drawn.append(plots.roc_on_log_axes(details["attack_roc"]))
    if details.get("calibration"):
        drawn.append(plots.calibration(details["calibration"]))
    return [Markup(text) for text in drawn]  # noqa: S704 - our own SVG, its texts escaped
