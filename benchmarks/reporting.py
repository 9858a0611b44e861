"""How every benchmark reports: a table for people, and benchmarks/results/<room>.json for machines.

A row is `{name, ours, rival, asked, holds, unit, how}`; `holds` is None where nothing was asked.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One measured figure beside what was asked and what a rival reached in the same run."""

    name: str
    ours: float | str | None
    unit: str
    how: str
    rival: float | str | None = None
    asked: str | None = None
    holds: bool | None = None


def report(room: str, rows: list[Row]) -> None:
    """Print the table and write the results of this run."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{room}.json"
    path.write_text(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False) + "\n")
    header = ("what", "ours", "rival", "asked", "holds", "unit")
    cells = [
        (row.name, _show(row.ours), _show(row.rival), row.asked or "–", _verdict(row.holds), row.unit) for row in rows
    ]
    widths = [max(len(line[column]) for line in [header, *cells]) for column in range(len(header))]
    for line in [header, *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(f"written to benchmarks/results/{room}.json")


def merge(room: str, rows: list[Row]) -> list[Row]:
    """The rows of the last run with those of a part of it replaced by new ones."""
    path = RESULTS / f"{room}.json"
    known = {entry["name"]: Row(**entry) for entry in json.loads(path.read_text())} if path.is_file() else {}
    return list((known | {row.name: row for row in rows}).values())


def median_of(action: Callable[[], float], *, runs: int) -> float:
    """Median of several runs: the machines are noisy."""
    return statistics.median(action() for _ in range(runs))


def _show(value: float | str | None) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:,.4g}"


def _verdict(holds: bool | None) -> str:
    return {None: "–", True: "yes", False: "NO"}[holds]
