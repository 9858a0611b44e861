"""The second product: images from a fresh clone to a probed serving image, and attacked on the way."""

import json
from pathlib import Path
from typing import Any

from mlops.training.audit_pool import load_audits


def test_images_go_all_the_way_to_a_probed_image(digits_clone: Any) -> None:
    assert "released digits@1" in digits_clone.said[0]
    again = json.loads(digits_clone.check("release", "digits", "--json"))["digits"]
    assert [name for name, step in again.items() if not step["is_reused"]] == []
    assert "PASS" in again["probe"]["facts"]["summary"]
    assert "5 golden" in again["probe"]["facts"]["summary"]


def test_the_gate_attacked_pixels_and_some_answers_fell(digits_clone: Any) -> None:
    shown = json.loads(digits_clone.check("gate", "show", "digits", "--json"))
    estimates = {check["name"]: check["claims"][0].get("estimate") for check in shown["checks"] if check["claims"]}
    assert shown["verdict"] == "PASS"
    assert estimates["accuracy"] >= 0.95
    assert estimates["faint-marks"] < estimates["grey-noise"] < estimates["accuracy"]


def test_each_trial_left_evidence_about_the_audit_pool(digits_clone: Any) -> None:
    folders = sorted((digits_clone.folder / ".mlops" / "checkpoints").glob("*/*/audit.safetensors"))
    found = load_audits({number: Path(path).parent for number, path in enumerate(folders)})
    assert found is not None
    assert found.members.shape == (len(folders), 600)
    assert 0.4 < found.members.mean() < 0.6
    assert len({member.tobytes() for member in found.members}) == len(folders)  # each trial draws anew
