"""Findings of checks, kept by the digest of all they depend on: an unchanged check is not heard twice.

The key holds rule, model, rows, code, seed and whatever else was laid before the hearing. Leaves to others: verdicts,
which are decided anew from all findings at each run (decisions.py), and results of the whole gate (store.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlops.evaluation.check_crew import Heard
from mlops.evaluation.policy import AnyRule
from mlops.evaluation.rates import Evidence
from mlops.evaluation.verdicts import Claim, Findings
from mlops.files import write_atomically
from mlops.provenance.digest import digest_json, hex_of


class CheckCache:
    """Implements `KnownChecks`.

    Args:
        folder: One JSON file a check.
        inputs: Digests of everything besides the rule that findings depend on.
        of_kind: What only checks of a kind depend on.
    """

    def __init__(
        self, folder: Path, *, inputs: Mapping[str, Any], of_kind: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self._folder = folder
        self._inputs = dict(inputs)
        self._of_kind = of_kind or {}

    def find(self, rule: AnyRule) -> Heard | None:
        """See `KnownChecks`; a file that cannot be read is as good as none."""
        try:
            content = json.loads(self._path(rule).read_text(encoding="utf-8"))
            claims = tuple(_claim(item) for item in content["claims"])
            return Heard(Findings(claims, content["details"]), content["code"], content["text"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, rule: AnyRule, heard: Heard) -> None:
        """See `KnownChecks`; findings that JSON cannot hold are heard again next time."""
        claims = [asdict(claim) for claim in heard.findings.claims]
        content = {"claims": claims, "details": heard.findings.details, "code": heard.code, "text": heard.text}
        try:
            text = json.dumps(content, ensure_ascii=False)
        except TypeError:
            return
        write_atomically(self._path(rule), text)

    def _path(self, rule: AnyRule) -> Path:
        key = {"rule": _measured(rule), "inputs": self._inputs, "kind": self._of_kind.get(rule.kind, {})}
        return self._folder / f"{hex_of(digest_json(key))}.json"


def _measured(rule: AnyRule) -> dict[str, Any]:
    """What of a rule its findings depend on: who answers for it and whether it blocks is decided later."""
    aside = {"title", "owner", "reason", "blocking", "undecided", "undecided_reason", "time_limit"}
    return rule.model_dump(mode="json", exclude=aside)


def _claim(item: dict[str, Any]) -> Claim:
    evidence = item["evidence"]
    return Claim(**{**item, "evidence": None if evidence is None else Evidence(**evidence)})
