"""`mlops keys`, `trace`, `audit`, `status`, `schedule` on a small project, through the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from mlops.cli.main import mlops
from mlops.deploy.desired_state import DesiredState, ReleaseSet, ServedVersion
from mlops.deploy.sql_deployments import insert_desired
from mlops.errors import MlopsError, ProjectError, ProvenanceError
from mlops.overview.rebuild import remove_ended
from mlops.project.opening import open_project
from mlops.provenance.digest import digest_bytes
from mlops.provenance.steps import StepOutcome


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("training", "deploy/environments"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "datasets.dvc").write_text("outs: []\n")
    (tmp_path / "training" / "income.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(mlops, arguments)
    if isinstance(result.exception, MlopsError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def record_one_step(root: Path) -> str:
    project = open_project(root)
    outcome = StepOutcome(
        outputs={"weights": digest_bytes(b"weights")}, facts={"params": {"lr": 0.1}, "commit": "0" * 40}
    )
    project.step_book.run(
        "sweep", product="income", inputs={"trainer": digest_bytes(b"trainer")}, action=lambda: outcome
    )
    project.ledger.close()
    return outcome.outputs["weights"]


def test_keys_are_made_once_entered_and_listed(root: Path) -> None:
    made = json.loads(
        call("keys", "init", "--person", "ada", "--email", "ada@x.org", "--machine", "m1", "--json").output
    )
    roles = yaml.safe_load((root / "deploy" / "roles.yaml").read_text())
    assert roles["people"]["ada"] == {"emails": ["ada@x.org"], "roles": ["approver"], "keys": [made["keys"]["ada"]]}
    assert roles["machines"] == {"m1": {"keys": [made["keys"]["machine"]]}}
    again = json.loads(call("keys", "init", "--person", "ada", "--machine", "m1", "--json").output)
    assert again == {"keys": made["keys"], "is_roles_file_changed": False}
    listed = {row["name"]: row["in_roles"] for row in json.loads(call("keys", "list", "--json").output)}
    assert listed == {"ada": "ada: approver", "machine": "a machine"}


def test_a_dry_run_makes_no_key(root: Path) -> None:
    assert "would make" in call("keys", "init", "--person", "ada", "--dry-run").output
    assert not (root / ".mlops" / "keys").exists()
    assert not (root / "deploy" / "roles.yaml").exists()


def test_a_person_cannot_take_the_machines_name(root: Path) -> None:
    with pytest.raises(ProjectError):
        call("keys", "init", "--person", "machine")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--email", "ada"), "'ada' is not an address"),
        (("--email", "other@x.org"), "has ada without other@x.org"),
        (("--role", "officer"), "has ada without officer"),
    ],
)
def test_what_would_not_be_entered_is_not_passed_over(root: Path, arguments: tuple[str, ...], said: str) -> None:
    call("keys", "init", "--person", "ada", "--email", "ada@x.org")
    before = (root / "deploy" / "roles.yaml").read_text()
    with pytest.raises(ProjectError, match=said):
        call("keys", "init", "--person", "ada", *arguments)
    assert (root / "deploy" / "roles.yaml").read_text() == before


def test_a_trace_shows_parameters_and_ingredients(root: Path) -> None:
    digest = record_one_step(root)
    text = call("trace", digest).output
    assert "params: lr=0.1" in text
    assert f"trainer {digest_bytes(b'trainer')[:19]}" in text
    content = json.loads(call("trace", digest, "--json").output)
    assert content["starts"] == [digest]
    assert content["steps"][0]["is_signed"]


def test_an_audit_holds_and_breaks_with_exit_code_one(root: Path) -> None:
    digest = record_one_step(root)
    assert "the chain holds: 1 steps" in call("audit", "verify", digest).output
    (root / ".mlops" / "keys" / "machine.pem").unlink()
    result = call("audit", "verify", digest, "--json")
    assert result.exit_code == 1
    assert any("belongs to nobody" in link["text"] for link in json.loads(result.output)["links"])


def test_a_refusal_ends_the_process_with_exit_code_one(root: Path) -> None:
    digest = record_one_step(root)
    command = [sys.executable, "-m", "mlops.cli", "audit", "verify", digest]
    assert subprocess.run(command, cwd=root, capture_output=True, check=False).returncode == 0
    (root / ".mlops" / "keys" / "machine.pem").unlink()
    refused = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "the chain is broken" in refused.stdout


def test_an_unknown_reference_is_a_fault_with_a_hint(root: Path) -> None:
    with pytest.raises(ProvenanceError) as caught:
        call("trace", "income@7")
    assert "mlops status" in caught.value.hint


def test_the_status_of_a_new_project_says_what_to_do(root: Path) -> None:
    assert "mlops release income" in call("status").output
    assert json.loads(call("status", "--json").output)["products"][0]["name"] == "income"
    assert not (root / ".mlops" / "keys").exists(), "looking makes no key"


def test_the_schedule_is_printed_in_the_form_asked_for(root: Path) -> None:
    assert "[Timer]" in call("schedule", "--form", "systemd").output
    assert {job["name"] for job in json.loads(call("schedule", "--json").output)} == {"reconcile", "rebuild", "release"}


def release_on_paper(root: Path) -> None:
    """A registered version with an image, as the ledger knows it; and the environments of this repository."""
    source = Path(__file__).parents[3] / "deploy" / "environments"
    for path in source.glob("*.yaml"):
        (root / "deploy" / "environments" / path.name).write_bytes(path.read_bytes())
    project = open_project(root)
    version, image = digest_bytes(b"version"), digest_bytes(b"image")
    for kind, inputs, outputs, facts in (
        ("registration", {}, {"version": version}, {"number": 3, "alias": "latest"}),
        ("image", {"version": version}, {"image": image}, {}),
    ):
        outcome = StepOutcome(outputs=outputs, facts=facts)
        project.step_book.run(kind, product="income", inputs=inputs, action=lambda outcome=outcome: outcome)
    project.ledger.close()


def waiting_in(root: Path) -> dict[str, str]:
    lines = json.loads(call("status", "--json").output)["waiting"]
    return {line["what"]: f"{line['for_whom']}: {line['next_step']}" for line in lines}


def test_a_new_version_waits_for_approvers_or_for_someone_who_promotes_it(root: Path) -> None:
    release_on_paper(root)
    waiting = waiting_in(root)
    assert waiting["income@3 for production"].startswith("2 more approvers: mlops approve income@3 --env production")
    assert waiting["income@3 for staging"] == "someone who promotes it: mlops promote income@3 --to staging"


def test_a_desired_version_that_does_not_serve_waits_for_a_reconcile_and_can_be_traced(root: Path) -> None:
    release_on_paper(root)
    project = open_project(root)
    served = ServedVersion(number=3, image=digest_bytes(b"image"), candidate=digest_bytes(b"c"), share=100)
    state = DesiredState("staging", (ReleaseSet("income", (served,)),))
    with project.ledger.write() as transaction:
        insert_desired(
            transaction,
            environment="staging",
            digest=state.digest,
            content=state.render_yaml(),
            cause="promote",
            why="",
            step_id=None,
        )
    project.ledger.close()
    waiting = waiting_in(root)
    assert waiting["promote in staging is not yet in git"] == "git: mlops deploy reconcile"
    assert waiting["income@3 is desired in staging and does not serve yet"].startswith("a reconcile")
    assert "income@3 for staging" not in waiting
    assert json.loads(call("trace", "staging", "--json").output)["starts"] == [digest_bytes(b"image")]


def test_the_places_of_killed_rebuilds_go_and_kept_ones_stay(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    for name in (f"income-1-{ended.pid}", f"income-2-{ended.pid}", f"income-3-{os.getpid()}"):
        (tmp_path / name).mkdir()
    (tmp_path / f"income-2-{ended.pid}" / "kept").touch()
    remove_ended(tmp_path)
    remove_ended(tmp_path / "not there")
    assert sorted(path.name.rpartition("-")[0] for path in tmp_path.iterdir()) == ["income-2", "income-3"]


def test_a_backup_without_a_terminal_asks_for_a_file_with_the_passphrase(root: Path) -> None:
    with pytest.raises(ProjectError, match="no terminal") as caught:
        call("backup", str(root / "b.backup"))
    assert "--passphrase-file" in caught.value.hint
