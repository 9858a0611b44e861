"""The chain of a real release: traced, verified, broken on purpose byte by byte, and rebuilt."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

KINDS = {"dataset-import", "source-check", "sweep", "export", "gate", "registration", "image", "probe"}


def audit(clone: Any, reference: str = "income@latest") -> dict[str, Any]:
    done = clone.run("audit", "verify", reference, "--json")
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if report["is_verified"] else 1), done.stderr
    return report


def test_a_release_is_traced_to_data_code_parameters_and_leases(income_clone: Any) -> None:
    trace = json.loads(income_clone.check("trace", "income@latest", "--json"))
    steps = {step["kind"]: step for step in trace["steps"]}
    assert set(steps) | {step["kind"] for step in trace["used_by"]} >= KINDS
    assert all(step["is_signed"] for step in trace["steps"])
    sweep = steps["sweep"]["facts"]
    assert sweep["params"]
    assert sweep["lease_ids"]
    assert sweep["confinement"] in ("landlock", "none")
    assert income_clone.git("cat-file", "-t", sweep["commit"]).strip() == "commit"
    assert [len(lines) for lines in trace["shards"].values()] == [64]
    run = income_clone.check("trace", f"run:{sweep['mlflow_run_id']}")
    assert "dataset-import" in run


def test_the_chain_of_a_release_holds(income_clone: Any) -> None:
    report = audit(income_clone)
    assert report["is_verified"], [link for link in report["links"] if link["status"] == "broken"]
    recomputed = {
        link["name"] for link in report["links"] if link["check"] == "digest" and link["status"] == "verified"
    }
    assert recomputed >= {
        "manifest",
        "candidate",
        "gate",
        "image",
        "probe",
        "version",
        "trainer",
        "spec",
        "lock",
        "policy",
    }


@pytest.mark.parametrize("what", ["layer", "config", "manifest", "shard", "dir", "candidate", "gate.json", "gate.html"])
def test_one_flipped_byte_anywhere_is_named(income_clone: Any, what: str, tmp_path: Path) -> None:
    state = income_clone.folder / ".mlops"
    trace = json.loads(income_clone.check("trace", "income@latest", "--json"))
    outputs = {name: it for step in [*trace["steps"], *trace["used_by"]] for name, it in step["outputs"].items()}
    digest, evidence = outputs["image"], state / "evidence" / outputs["gate"][7:]
    blobs = state / "images" / "blobs" / "sha256"
    manifest = json.loads((blobs / digest[7:]).read_bytes())
    place = {
        "layer": lambda: blobs / manifest["layers"][-1]["digest"][7:],
        "config": lambda: blobs / manifest["config"]["digest"][7:],
        "manifest": lambda: blobs / digest[7:],
        "shard": lambda: max((state / "dvc-remote" / "files" / "md5").rglob("*"), key=lambda path: path.stat().st_size),
        "dir": lambda: next((state / "dvc-remote" / "files" / "md5").rglob("*.dir")),
        "candidate": lambda: state / "candidates" / outputs["candidate"][7:] / "weights.safetensors",
        "gate.json": lambda: evidence / "gate.json",
        "gate.html": lambda: evidence / "gate.html",
    }[what]()
    shutil.copy2(place, tmp_path / "whole")
    flipped = bytearray(place.read_bytes())
    flipped[random.Random(what).randrange(len(flipped))] ^= 1
    place.chmod(0o644)
    try:
        place.write_bytes(flipped)
        report = audit(income_clone)
    finally:
        shutil.copy2(tmp_path / "whole", place)
    assert not report["is_verified"]
    assert any(link["status"] == "broken" and link["check"] == "digest" for link in report["links"])


def test_the_status_knows_the_release(income_clone: Any) -> None:
    status = json.loads(income_clone.check("status", "--json"))
    (income,) = (product for product in status["products"] if product["name"] == "income")
    assert income["latest_number"] >= 1
    assert income["gate"]["verdict"] == "PASS"
    assert {budget["name"] for budget in status["budgets"]} >= {"research"}


@pytest.mark.slow
def test_a_rebuild_from_attestations_gives_every_digest_again(income_clone: Any) -> None:
    done = income_clone.run("rebuild", "income@latest", "--check", "--json", timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["is_equal"]
    assert {entry["name"] for entry in outcome["digests"]} >= {"weights", "candidate", "image", "manifest"}
    status = json.loads(income_clone.check("status", "--json"))
    assert status["days_since_good_rebuild"]["income"] == 0.0
    assert not (income_clone.folder / ".mlops" / "rebuild").exists() or not list(
        (income_clone.folder / ".mlops" / "rebuild").iterdir()
    )
