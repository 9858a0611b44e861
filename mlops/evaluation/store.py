"""Keeping gate results: `.mlops/evidence/<hex>/gate.json` and `gate.html`, found again by digest or product.

Leaves to others: the signed record of the step (mlops/release.py) and copies in MLflow (mlops/registry).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlops.clock import render_time
from mlops.errors import EvaluationError
from mlops.evaluation.model_card import render_card
from mlops.evaluation.report import render_report, render_text
from mlops.evaluation.verdicts import GateResult
from mlops.files import remove_tree, write_atomically
from mlops.places import Places
from mlops.provenance.digest import digest_json, hex_of

PAGE_FILE, TEXT_FILE, CARD_FILE = "gate.html", "gate.txt", "model_card.md"


def keep_result(places: Places, result: GateResult, *, judged_us: int) -> Path:
    """Write JSON, page, text and model card; returns their folder, named by the result's digest.

    Files of a result that was judged before stay as they are: a signed step states their digests.
    """
    folder = places.evidence / hex_of(result.digest)
    if _is_kept(folder):
        (folder / "gate.json").touch()  # the newest again
        return folder
    content = {**result.to_json(), "judged_at": render_time(judged_us), "judged_us": judged_us}
    write_atomically(folder / PAGE_FILE, render_report(result, judged_at=render_time(judged_us)))
    write_atomically(folder / TEXT_FILE, render_text(result) + "\n")
    write_atomically(folder / CARD_FILE, render_card(result))
    write_atomically(folder / "gate.json", json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return folder


def _is_kept(folder: Path) -> bool:
    if not all((folder / name).is_file() for name in (PAGE_FILE, TEXT_FILE, CARD_FILE, "gate.json")):
        return False
    try:
        load_kept(folder)
    except EvaluationError:
        return False
    return True


def load_kept(folder: Path) -> dict[str, Any]:
    """The JSON of a kept result.

    Raises:
        EvaluationError: Absent, or changed after it was written.
    """
    path = folder / "gate.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be read: {error}", hint="run the gate again") from error
    aside = {"digest", "seconds", "judged_at", "judged_us", "measured"}
    found = digest_json({key: value for key, value in content.items() if key not in aside})
    if found != content.get("digest"):
        raise EvaluationError(
            f"{path} was changed after the gate wrote it: its content is {found[7:19]}", hint="run the gate again"
        )
    return content


def find_newest(places: Places, *, product: str) -> Path | None:
    """Folder of the product's newest result: judged, or judged again, last."""
    found: list[tuple[int, Path]] = []
    for path in places.evidence.glob("*/gate.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("product") == product:
            again_us = path.stat().st_mtime_ns // 1_000
            found.append((max(int(content.get("judged_us", 0)), again_us), path.parent))
    return max(found, default=(0, None))[1]


def find_verdict(places: Places, *, product: str, candidate: str, check: str) -> str | None:
    """What the newest result of a candidate says of a check; None when it was not judged, or without that check."""
    folder = find_newest(places, product=product)
    content = {} if folder is None else load_kept(folder)
    if content.get("candidate") != candidate:
        return None
    return next((item["verdict"] for item in content["checks"] if item["name"] == check), None)


def purge_findings(places: Places) -> bool:
    """Drop what checks found, kept by digest for the next run of a gate; says whether there was anything.

    Raises:
        EnvironmentFault: They cannot be removed.
    """
    return remove_tree(places.cache / "checks")


def purge_result(places: Places, digest: str) -> bool:
    """Remove the files of one result, plots and tables with them; its signed record stays. Says whether any was there.

    Raises:
        EnvironmentFault: They cannot be removed.
    """
    return remove_tree(places.evidence / hex_of(digest))
