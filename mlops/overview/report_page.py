"""The report as one HTML page that a non-engineer can read: plain words first, numbers with their limits, digests last.

The page loads nothing from outside, fits a phone and prints. Leaves to others: the facts (report.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mlops.clock import SECOND_US
from mlops.evaluation import plots
from mlops.evaluation.report import FAMILIES, tie_units
from mlops.evaluation.wording import MANY_ROWS, NEXT_STEPS, show
from mlops.overview.report import MoveFacts, Report, VersionFacts
from mlops.overview.status_text import render_age

VERDICTS = {"PASS": "kept", "FAIL": "not kept", "UNDECIDED": "not decided"}
CAUSES = {
    "promote": "let in",
    "rollback": "taken back by a person",
    "automatic-return": "taken back by the machine",
    "erasure": "let in after people were forgotten",
}
RULES = {
    "gate-passed": "It kept what is required of it (part 2).",
    "image-probed": "The packed program was started and answered exactly as the examined one.",
    "chain-verified": "Every signature holds, from the data to the packed program.",
    "no-fence": "It was not trained on anybody who asked to be forgotten.",
    "not-barred": "It has not failed here before.",
}
"""Rules of a promotion in plain words; others are shown as they were recorded."""
STATES = {
    "received": "received",
    "identity-hold": "waiting for proof of identity",
    "legal-hold": "on hold by law",
    "fenced": "kept out of anything new",
    "batched": "being carried out",
}


@dataclass(frozen=True)
class CheckLine:
    """One check of the gate in plain words."""

    title: str
    word: str
    """`PASS`, `FAIL` or `UNDECIDED`."""
    is_required: bool
    measured: str
    asked: str
    reason: str
    """Why the limit is where it is."""
    note: str
    """Of an undecided or waived one: why it may go through, or what would decide it."""
    bar: Markup


@dataclass(frozen=True)
class ChangeLine:
    """One measure before and now."""

    title: str
    before: str
    now: str
    asked: str
    is_better: bool | None
    """None when the new value lies where the old one may truly have been: no difference is shown."""


def render_report_page(report: Report) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("mlops.overview", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    version = report.version
    checks = list(_read_checks(version))
    page = environment.get_template("report.html.jinja").render(
        report=report,
        version=version,
        headline=write_headline(report),
        attention=list(find_attention(report)),
        families=_families(version),
        checks=checks,
        changes=list(compare_versions(report.previous, version)),
        differences=list(describe_differences(report)),
        compared=_compared_groups(version),
        entered=[_tell_rule(code, text) for code, text in (report.entry.checklist if report.entry else ())],
        verdicts=VERDICTS,
        causes=CAUSES,
        states=STATES,
        date=render_date,
        age=lambda at_us: render_age(at_us, report.now_us),
        show_value=_show_param,
    )
    return tie_units(page)


def render_date(at_us: int) -> str:
    """`27 November 2026, 07:14 UTC`."""
    moment = datetime.fromtimestamp(at_us / SECOND_US, tz=UTC)
    return f"{moment.day} {moment.strftime('%B %Y, %H:%M')} UTC"


def write_headline(report: Report) -> str:
    """What serves and why, in at most three sentences."""
    version = report.version
    if version is None:
        return f"No version of {report.product} has been released yet, so nothing answers requests."
    if report.main is None:
        return (
            f"No version of {report.product} answers requests anywhere. Version {version.number} was released "
            f"{render_date(version.registered_us)} and has not been put into service."
        )
    here = [row for row in report.serving if row.environment == report.main]
    shared = sorted(here, key=lambda row: -row.share)
    told = " and ".join(f"version {row.number} ({row.share} % of them)" for row in shared)
    who = told if len(shared) > 1 else f"version {version.number}"
    since = render_date(here[0].since_us)
    text = f"In {report.main}, requests are answered by {who} of {report.product}, since {since}."
    if report.main in report.outages:
        text = f"In {report.main}, nothing answers requests now: {who} of {report.product} does not run."
    checks = [check for check in _read_checks(version) if check.is_required]
    kept = sum(check.word == "PASS" for check in checks)
    text += f" It kept {kept} of the {len(checks)} things that are required of it"
    left = sum(check.word == "UNDECIDED" for check in checks)
    text += f"; {left} could not be decided with the data at hand, which its rules allow." if left else "."
    people = sorted({each.person for each in report.approvals if each.environment == report.main})
    return text + (f" Approved by {_join(people)}." if people else "")


def find_attention(report: Report) -> Iterator[str]:
    """What somebody should look at, the gravest first."""
    for request in report.erasures:
        if request.overdue:
            are = "is" if request.overdue == 1 else "are"
            yield f"{_count(request.overdue, 'request')} to be forgotten {are} past the legal deadline."
    for environment in report.outages:
        yield f"Nothing answers requests in {environment}: what served there was stopped, or broke down."
    for incident in report.incidents:
        yield f"Open incident (severity {incident.severity} of 3, 1 is worst): {incident.title}."
    for failed in report.failed:
        when = render_date(failed.at_us)
        yield f"Version {failed.number} was taken out of {failed.environment} on {when}: {failed.why}."
    for request in report.erasures:
        near = [days for days in request.days_left if 0 <= days < 7]
        if near:
            first = f", the first of them within {min(near):g}" if min(near) < max(near) else ""
            yield f"{_count(len(near), 'request')} to be forgotten must be answered within {max(near):g} days{first}."
    for line in _read_checks(report.version):
        if line.word == "FAIL" and not line.is_required:
            figures = f" (measured {line.measured}, asked {line.asked})" if line.measured else ""
            yield f"Not kept, though it only advises: {line.title}{figures}."
    if report.version is not None and report.version.gate is None:
        yield "The result of the checks is no longer kept on this machine, so this page cannot show why it was allowed."


def compare_versions(before: VersionFacts | None, now: VersionFacts | None) -> Iterator[ChangeLine]:
    """Measures that both versions have, by the claim that decides each now."""
    if before is None or now is None or before.gate is None or now.gate is None:
        return
    old = {check["name"]: check for check in before.gate["checks"]}
    for check in now.gate["checks"]:
        second = _leading(check)
        claims = old.get(check["name"], {}).get("claims", ())
        first = next((claim for claim in claims if second is not None and claim["name"] == second["name"]), None)
        if second is None or first is None or first["estimate"] is None:
            continue
        is_same = first["lower"] <= second["estimate"] <= first["upper"]
        is_better = (second["estimate"] > first["estimate"]) == (second["direction"] == "at least")
        yield ChangeLine(
            title=check["title"] or check["name"],
            before=show(first["estimate"], check["kind"]),
            now=show(second["estimate"], check["kind"]),
            asked=f"{second['direction']} {show(second['threshold'], check['kind'])}",
            is_better=None if is_same else is_better,
        )


def describe_differences(report: Report) -> Iterator[str]:
    """What else is different from the version before, as sentences."""
    before, now = report.previous, report.version
    if before is None or now is None:
        return
    if before.manifest == now.manifest:
        yield "It was trained on the same data."
    else:
        yield f"It was trained on other data: {_rows(before)} before, {_rows(now)} now."
    yield (
        "The code is the same."
        if before.commit == now.commit
        else (f"The code or the rules changed: commit {before.commit[:10]} before, {now.commit[:10]} now.")
    )
    changed = sorted(name for name in {*before.params, *now.params} if before.params.get(name) != now.params.get(name))
    if changed:
        told = ", ".join(
            f"{name.replace('_', ' ')} {_show_param(before.params.get(name))} → {_show_param(now.params.get(name))}"
            for name in changed
        )
        yield f"The search chose other settings: {told}."
    for text in _rule_changes(report.entry):
        yield f"Changed rule: {text}."


def _rule_changes(entry: MoveFacts | None) -> Iterator[str]:
    if entry is not None:
        yield from (text for code, text in entry.checklist if code.startswith("evidence-"))


def _read_checks(version: VersionFacts | None) -> Iterator[CheckLine]:
    if version is not None and version.gate is not None:
        yield from (_read_check(check) for check in version.gate["checks"])


def _read_check(check: dict[str, Any]) -> CheckLine:
    claim = _leading(check)
    measured = asked = ""
    bar = Markup("")
    if claim is not None:
        name = "" if claim["name"] in ("all", "no open case") else f"{claim['name']}: "
        measured = name + show(claim["estimate"], check["kind"])
        asked = f"{claim['direction']} {show(claim['threshold'], check['kind'])}"
    if claim is not None and claim["n"] == 0:
        measured, asked = claim["text"] or claim["name"], ""
    elif claim is not None:
        bar = Markup(  # noqa: S704 - our own SVG
            plots.interval_bar(
                estimate=claim["estimate"],
                lower=claim["lower"],
                upper=claim["upper"],
                threshold=claim["threshold"],
                is_minimum=claim["direction"] == "at least",
                verdict=check["verdict"],
            )
        )
    return CheckLine(
        title=check["title"] or check["name"],
        word=check["verdict"],
        is_required=bool(check["blocking"]),
        measured=measured,
        asked=asked,
        reason=check["policy_reason"],
        note=_note_of(check),
        bar=bar,
    )


def _note_of(check: dict[str, Any]) -> str:
    if check["verdict"] == "PASS":
        return "" if check["claims"] else f"{check['explanation']}."
    waiver = check.get("waiver")
    if waiver:
        return f"Waived by {waiver.get('by', '?')} until {waiver.get('until', '?')}: {waiver.get('reason', '')}"
    parts = [check["undecided_reason"]] if check["verdict"] == "UNDECIDED" and check["undecided_reason"] else []
    rows = max((claim["rows_needed"] or 0 for claim in check["claims"]), default=0)
    if check["verdict"] == "UNDECIDED" and rows:
        few = f"About {rows:,} more people's rows would decide it."
        many = f"It lies so near its limit that more than {MANY_ROWS:,} people's rows would be needed."
        parts.append(many if rows > MANY_ROWS else few)
    elif check["code"] in NEXT_STEPS and not parts:
        parts.append(f"What would settle it: {NEXT_STEPS[check['code']]}.")
    if not check["blocking"]:
        parts.append("This one only advises; it stops nothing.")
    return " ".join(parts)


def _leading(check: dict[str, Any]) -> dict[str, Any] | None:
    """The claim that decided: the worst verdict, and in it the least favourable evidence."""
    order = {"FAIL": 0, "UNDECIDED": 1, "PASS": 2}
    claims = [claim for claim in check.get("claims", ()) if claim["estimate"] is not None]
    return min(claims, key=lambda claim: (order[claim["verdict"]], -claim["p_good"]), default=None)


@dataclass(frozen=True)
class Family:
    """Checks about one thing."""

    title: str
    checks: tuple[CheckLine, ...]

    @property
    def required(self) -> tuple[CheckLine, ...]:
        """Those that stop a release."""
        return tuple(check for check in self.checks if check.is_required)

    def write_summary(self) -> str:
        """How it came out, in words."""
        kept = sum(check.word == "PASS" for check in self.required)
        parts = [f"{kept} of {len(self.required)} required kept"] if self.required else ["nothing required"]
        left = sum(check.word == "UNDECIDED" for check in self.required)
        parts += [f"{left} not decided, which the rules allow"] if left else []
        advice = [check for check in self.checks if not check.is_required and check.word != "PASS"]
        parts += (
            [f"{_count(len(advice), 'warning')} that only advise{'s' if len(advice) == 1 else ''}"] if advice else []
        )
        return "; ".join(parts)

    @property
    def word(self) -> str:
        """The worst verdict of what is required."""
        words = {check.word for check in self.required}
        return next((word for word in ("FAIL", "UNDECIDED") if word in words), "PASS")


def _families(version: VersionFacts | None) -> list[Family]:
    """Headings of the gate's report with their checks."""
    if version is None or version.gate is None:
        return []
    named = frozenset().union(*(kinds for _, kinds in FAMILIES))
    groups = [
        Family(
            title,
            tuple(
                _read_check(check)
                for check in version.gate["checks"]
                if check["kind"] in kinds or (not kinds and check["kind"] not in named)
            ),
        )
        for title, kinds in FAMILIES
    ]
    return [family for family in groups if family.checks]


def _compared_groups(version: VersionFacts | None) -> tuple[CheckLine, ...]:
    """What is compared between groups of people."""
    return next((family.checks for family in _families(version) if family.title == "Fairness"), ())


def _tell_rule(code: str, text: str) -> str:
    return RULES.get(code, text)


def _rows(version: VersionFacts) -> str:
    return f"{version.rows:,} rows" if version.rows is not None else "an unknown number of rows"


def _show_param(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _join(names: list[str]) -> str:
    shown = [name.capitalize() if name.islower() else name for name in names]
    return " and ".join(([", ".join(shown[:-1])] if len(shown) > 1 else []) + shown[-1:])
