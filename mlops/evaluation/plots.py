"""Plots as inline SVG text: no scripts, no fonts, nothing loaded from outside. Leaves to others: where they stand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

COLORS = {"PASS": "#1a7f37", "FAIL": "#c02020", "UNDECIDED": "#9a6700"}
SERIES = ("#2458a6", "#b35900", "#1a7f37", "#7a3ea0", "#5a5a5a", "#b0306a")
GAP = 72
"""Between panels: room for the numbers of rows."""
MUTED, LINE, LIMIT = "#6b7280", "#d5d9e0", "#c02020"


def interval_bar(
    *, estimate: float, lower: float, upper: float, threshold: float, is_minimum: bool, verdict: str, width: int = 220
) -> str:
    """One interval against its limit; the side that is asked for is shaded."""
    spread = max(upper - lower, abs(estimate - threshold), 1e-9)
    low, high = min(lower, threshold) - 0.25 * spread, max(upper, threshold) + 0.25 * spread

    def x(value: float) -> float:
        return round(4 + (width - 8) * (value - low) / (high - low), 1)

    color, limit = COLORS[verdict], x(threshold)
    shade = (limit, width - 4 - limit) if is_minimum else (4, limit - 4)
    return _svg(
        width,
        22,
        f'<rect x="{shade[0]}" y="3" width="{max(shade[1], 0):.1f}" height="16" fill="#e8f3ea"/>',
        f'<line x1="{limit}" y1="1" x2="{limit}" y2="21" stroke="{LIMIT}" stroke-width="1.5" stroke-dasharray="3 2"/>',
        f'<line x1="{x(lower)}" y1="11" x2="{x(upper)}" y2="11" stroke="{color}" stroke-width="3"/>',
        f'<circle cx="{x(estimate)}" cy="11" r="4.5" fill="{color}"/>',
        label=f"estimate {estimate:.4g}, between {lower:.4g} and {upper:.4g}, limit {threshold:.4g}",
    )


def group_intervals(table: Sequence[Mapping[str, Any]], *, rates: Sequence[str]) -> str:
    """Dots with bounds by group, one panel per rate."""
    groups = sorted({str(row["group"]) for row in table})
    left, panel, row_height, top = 190, 250, 24, 26
    width, height = left + (panel + GAP) * len(rates), top + row_height * len(groups) + 24
    parts = [
        f'<text x="{left - 10}" y="{top + row_height * index + 16}" text-anchor="end">{escape(group)}</text>'
        for index, group in enumerate(groups)
    ]
    for number, rate in enumerate(rates):
        rows = {str(row["group"]): row for row in table if row["rate"] == rate}
        start = left + number * (panel + GAP)
        highest = max((float(row["upper"]) for row in rows.values() if "upper" in row), default=1.0)
        scale = panel / min(1.0, max(0.05, 1.05 * highest))
        parts.append(f'<text x="{start}" y="14" font-weight="600">{escape(rate)}</text>')
        parts += _axis(start, panel, top, height - 24, scale=scale)
        for index, group in enumerate(groups):
            parts += _group_row(rows.get(group), start, top + row_height * index + 11, scale=scale, panel=panel)
    return _svg(width, height, *parts, label="rates by group with 95 % bounds")


def _axis(start: float, panel: float, top: float, bottom: float, *, scale: float) -> list[str]:
    parts = []
    step = next(step for step in (0.02, 0.05, 0.1, 0.2, 0.25) if panel / scale / step <= 6)
    value = 0.0
    while value * scale <= panel + 0.5:
        x = start + value * scale
        parts.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" stroke="{LINE}"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="{MUTED}">{100 * value:.0f}%</text>'
        )
        value += step
    return parts


def _group_row(row: Mapping[str, Any] | None, start: float, y: float, *, scale: float, panel: float) -> list[str]:
    if row is None or "estimate" not in row:
        return [f'<text x="{start + 4}" y="{y + 5}" fill="{MUTED}">no rows to count</text>']
    ends = (start + float(row["lower"]) * scale, min(start + float(row["upper"]) * scale, start + panel))
    return [
        f'<line x1="{ends[0]:.1f}" y1="{y}" x2="{ends[1]:.1f}" y2="{y}" stroke="{SERIES[0]}" stroke-width="2.5"/>',
        f'<circle cx="{start + float(row["estimate"]) * scale:.1f}" cy="{y}" r="4" fill="{SERIES[0]}"/>',
        f'<text x="{start + panel + 6:.1f}" y="{y + 4}" fill="{MUTED}" font-size="10">n={row["n"]:,}</text>',
    ]


def bars(rows: Sequence[tuple[str, float]], *, limit: float | None = None) -> str:
    """Horizontal bars of shares with an optional limit."""
    left, panel, row_height = 190, 420, 26
    height = row_height * len(rows) + 22
    parts = []
    for index, (name, value) in enumerate(rows):
        y = row_height * index + 4
        parts.append(f'<text x="{left - 10}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect x="{left}" y="{y}" width="{panel * value:.1f}" height="18" fill="{SERIES[0]}" opacity=".8"/>'
        )
        parts.append(f'<text x="{left + panel * value + 6:.1f}" y="{y + 14}">{100 * value:.1f} %</text>')
    if limit is not None:
        x = left + panel * limit
        bottom = height - 20
        parts.append(f'<line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{bottom}" stroke="{LIMIT}" stroke-dasharray="4 3"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{height - 5}" text-anchor="middle" fill="{LIMIT}">asked {100 * limit:.0f} %</text>'
        )
    return _svg(
        left + panel + 70, height, *parts, label="shares: " + ", ".join(f"{n} {100 * v:.1f} %" for n, v in rows)
    )


def over_radius(points: Sequence[Mapping[str, float]], *, limit: float | None) -> str:
    """Right answers that survive, over the size of the lie in units of the policy's steps."""
    left, top, width, height = 56, 12, 330, 190
    widest = max(point["scale"] for point in points)

    def place(point: Mapping[str, float]) -> tuple[float, float]:
        return left + width * point["scale"] / widest, top + height * (1 - point["accuracy"])

    parts = [f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="{LINE}"/>']
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + height * (1 - value)
        parts.append(f'<line x1="{left}" y1="{y}" x2="{left + width}" y2="{y}" stroke="{LINE}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end" fill="{MUTED}">{100 * value:.0f}%</text>')
    places = [place(point) for point in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts.append(f'<polyline points="{line}" stroke="{SERIES[0]}" stroke-width="2" fill="none"/>')
    for point, (x, y) in zip(points, places, strict=True):
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{SERIES[0]}"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{top + height + 16}" text-anchor="middle" fill="{MUTED}">{point["scale"]:g}×</text>'
        )
    if limit is not None:
        x, y = place({"scale": 1.0, "accuracy": limit})
        parts.append(
            f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{top + height}" stroke="{MUTED}" stroke-dasharray="2 3"/>'
        )
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="none" stroke="{LIMIT}" stroke-width="2"/>')
        parts.append(f'<text x="{x + 9:.1f}" y="{y + 4:.1f}" fill="{LIMIT}">asked {100 * limit:.0f} %</text>')
    parts.append(
        f'<text x="{left + width / 2}" y="{top + height + 34}" text-anchor="middle">'
        "size of the change, 1× is what the policy allows</text>"
    )
    parts.append(
        f'<text transform="translate(12 {top + height / 2}) rotate(-90)" text-anchor="middle">still right</text>'
    )
    said = ", ".join(f"{point['scale']:g}x {100 * point['accuracy']:.0f} %" for point in points)
    return _svg(
        left + width + 60, top + height + 42, *parts, label=f"robust accuracy over the size of the change: {said}"
    )


def roc_on_log_axes(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """True against false positive rate of attacks; the grey line is guessing."""
    left, top, size, floor = 56, 12, 270, 1e-3

    def place(value: float) -> float:
        return size * (1 + math.log10(max(value, floor)) / 3)

    def point(pair: Sequence[float]) -> str:
        return f"{left + place(pair[0]):.1f},{top + size - place(pair[1]):.1f}"

    parts = [f'<rect x="{left}" y="{top}" width="{size}" height="{size}" fill="none" stroke="{LINE}"/>']
    for value, text in ((1e-3, "0.1%"), (1e-2, "1%"), (1e-1, "10%"), (1.0, "100%")):
        x, y = left + place(value), top + size - place(value)
        parts.append(f'<line x1="{x}" y1="{top}" x2="{x}" y2="{top + size}" stroke="{LINE}"/>')
        parts.append(f'<line x1="{left}" y1="{y}" x2="{left + size}" y2="{y}" stroke="{LINE}"/>')
        parts.append(f'<text x="{x}" y="{top + size + 16}" text-anchor="middle" fill="{MUTED}">{text}</text>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end" fill="{MUTED}">{text}</text>')
    ends = point((floor, floor)), point((1.0, 1.0))
    parts.append(f'<polyline points="{ends[0]} {ends[1]}" stroke="{MUTED}" stroke-dasharray="4 3" fill="none"/>')
    for index, (name, curve) in enumerate(curves.items()):
        color = SERIES[index % len(SERIES)]
        points = " ".join(point(pair) for pair in curve if pair[0] >= floor)
        parts.append(f'<polyline points="{points}" stroke="{color}" stroke-width="2" fill="none"/>')
        y = top + 16 + 20 * index
        parts.append(
            f'<line x1="{left + size + 16}" y1="{y}" x2="{left + size + 40}" y2="{y}" stroke="{color}" '
            'stroke-width="3"/>'
        )
        parts.append(f'<text x="{left + size + 46}" y="{y + 4}">{escape(name)}</text>')
    parts.append(
        f'<text x="{left + size / 2}" y="{top + size + 34}" text-anchor="middle">wrongly accused strangers</text>'
    )
    parts.append(
        f'<text transform="translate(12 {top + size / 2}) rotate(-90)" text-anchor="middle">members found</text>'
    )
    return _svg(left + size + 220, top + size + 42, *parts, label="ROC of membership attacks on logarithmic axes")


def calibration(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Observed rate against mean prediction with exact bounds."""
    left, top, size = 48, 12, 240
    parts = [
        f'<rect x="{left}" y="{top}" width="{size}" height="{size}" fill="none" stroke="{LINE}"/>',
        f'<line x1="{left}" y1="{top + size}" x2="{left + size}" y2="{top}" stroke="{MUTED}" stroke-dasharray="4 3"/>',
    ]
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = left + size * value, top + size * (1 - value)
        parts.append(
            f'<text x="{x}" y="{top + size + 16}" text-anchor="middle" fill="{MUTED}">{100 * value:.0f}%</text>'
        )
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end" fill="{MUTED}">{100 * value:.0f}%</text>')
    for index, points in enumerate(curves.values()):
        color = SERIES[index % len(SERIES)]
        for point in points:
            x = left + size * point["predicted"]
            low, high = (top + size * (1 - point[side]) for side in ("lower", "upper"))
            parts.append(
                f'<line x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}" stroke="{color}" stroke-width="2"/>'
            )
            y = top + size * (1 - point["observed"])
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>')
    parts.append(f'<text x="{left + size / 2}" y="{top + size + 32}" text-anchor="middle">mean prediction</text>')
    parts.append(f'<text transform="translate(10 {top + size / 2}) rotate(-90)" text-anchor="middle">observed</text>')
    return _svg(left + size + 30, top + size + 40, *parts, label="calibration")


def price(gaps: Sequence[Mapping[str, Any]]) -> str:
    """Gap of a plain model and of the candidate for each fairness check, with the limit."""
    left, panel, row_height = 330, 300, 30
    known = [gap for gap in gaps if gap["candidate"] is not None and gap["plain"] is not None]
    highest = max([0.05, *(float(gap[key]) for gap in known for key in ("candidate", "plain", "maximum"))])
    scale, height = panel / (1.08 * highest), row_height * len(known) + 30
    parts = []
    for index, gap in enumerate(known):
        y = row_height * index + 16
        plain, ours, limit = (left + float(gap[key]) * scale for key in ("plain", "candidate", "maximum"))
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(str(gap["title"]))}</text>')
        parts.append(f'<line x1="{left}" y1="{y}" x2="{left + panel}" y2="{y}" stroke="{LINE}"/>')
        parts.append(
            f'<line x1="{limit:.1f}" y1="{y - 9}" x2="{limit:.1f}" y2="{y + 9}" stroke="{LIMIT}" stroke-width="2"/>'
        )
        parts.append(f'<circle cx="{plain:.1f}" cy="{y}" r="5" fill="white" stroke="{MUTED}" stroke-width="2"/>')
        parts.append(f'<circle cx="{ours:.1f}" cy="{y}" r="5" fill="{SERIES[0]}"/>')
        parts.append(
            f'<text x="{left + panel + 8}" y="{y + 4}" fill="{MUTED}">{100 * float(gap["plain"]):.1f} → '
            f"{100 * float(gap['candidate']):.1f}, limit {100 * float(gap['maximum']):.0f}</text>"
        )
    parts.append(
        f'<text x="{left}" y="{height - 4}" fill="{MUTED}">○ plain model   ● this candidate   '
        f'<tspan fill="{LIMIT}">|</tspan> limit   (points)</text>'
    )
    return _svg(left + panel + 150, height, *parts, label="gaps of a plain model and of the candidate")


def _svg(width: float, height: float, *parts: str, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(label)}" font-size="12">{"".join(parts)}</svg>'
    )
