"""Looking at an image without running it: layers, bill of materials, licences, vulnerabilities, hardening; one verdict.

PASS only when every part was looked at and nothing was found; FAIL when something was found; else UNDECIDED.
Leaves to others: each of the parts (a module of that name), and booting the image (probe.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlops.clock import Clock
from mlops.errors import Reason, ServingError
from mlops.provenance.digest import digest_bytes
from mlops.serving.hardening import find_weaknesses
from mlops.serving.image_licences import find_licence_problems
from mlops.serving.inventory import take_inventory
from mlops.serving.sbom import render_sbom, validate_sbom
from mlops.serving.vulnerabilities import Acceptance, find_vulnerabilities


@dataclass(frozen=True)
class Verification:
    """What was looked at and found."""

    image: str
    verdict: str
    """`PASS`, `FAIL` or `UNDECIDED`."""
    reasons: tuple[Reason, ...]
    facts: dict[str, Any]
    sbom: bytes
    """CycloneDX JSON."""

    @property
    def is_go(self) -> bool:
        """Everything was looked at and nothing was found."""
        return self.verdict == "PASS"

    def to_json(self) -> dict[str, Any]:
        """For evidence and people."""
        return {
            "version": 1,
            "image": self.image,
            "verdict": self.verdict,
            "reasons": [asdict(reason) for reason in self.reasons],
            "facts": self.facts,
            "sbom": digest_bytes(self.sbom),
        }


def verify_image(
    layout: Path, digest: str, *, osv_snapshot: Path, clock: Clock, acceptances: Sequence[Acceptance] = ()
) -> Verification:
    """Look at an image without running it.

    Raises:
        ServingError: It cannot be read: a blob is missing or corrupt.
    """
    inventory = take_inventory(layout, digest)
    now = datetime.fromtimestamp(clock.now_us() / 1e6, tz=UTC)
    report = find_vulnerabilities(inventory, snapshot=osv_snapshot, now=now, acceptances=acceptances)
    sbom = render_sbom(inventory)
    found = [
        *(Reason("layers", fault) for fault in inventory.faults),
        *find_weaknesses(inventory),
        *find_licence_problems(inventory),
        *report.affected,
    ]
    try:
        validate_sbom(sbom)
    except ServingError as error:
        found.append(Reason("sbom", error.message))
    if not inventory.models:
        found.append(Reason("no-model", "the image holds no model"))
    verdict = "FAIL" if found else ("UNDECIDED" if report.unknown else "PASS")
    kinds = [package.kind for package in inventory.packages]
    facts = {
        "files": len(inventory.files),
        "debian_packages": kinds.count("deb"),
        "python_distributions": kinds.count("pypi"),
        "models": [f"{model.product}/{model.version}" for model in inventory.models],
        "osv_records": report.records,
        "accepted_vulnerabilities": list(report.accepted),
    }
    return Verification(image=digest, verdict=verdict, reasons=(*found, *report.unknown), facts=facts, sbom=sbom)
