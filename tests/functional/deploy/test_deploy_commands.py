"""Commands of the deploy room on a project where nothing was released yet: one clear sentence each."""

import json

import pytest
from click.testing import CliRunner

from mlops.cli.approve import approve
from mlops.cli.deploy import deploy
from mlops.cli.promote import promote
from mlops.cli.rollback import rollback
from mlops.deploy.promoting import promote as move
from mlops.deploy.reconciler import stop_serving
from mlops.errors import EnvironmentFault, MlopsError, Refusal
from mlops.provenance.keys import make_key

RULES = "version: 1\nname: production\napprovals: {needed: 1}\ntraffic: {ports: {income: 8711}}\n"


@pytest.fixture
def project(world, monkeypatch):
    world.write("deploy/environments/production.yaml", RULES)
    world.commit("Rules")
    monkeypatch.chdir(world.root)
    return world


def call(command, *arguments):
    """stdout, and the sentence and exit code a user would see."""
    result = CliRunner().invoke(command, arguments)
    error = result.exception
    if isinstance(error, MlopsError):
        return result.output, f"{error.message} {error.hint}", error.exit_code
    return result.output, "", result.exit_code


SENTENCES = {
    "promoting what is not there": (promote, ["income@1", "--to", "production"], "there is no income@1", 6),
    "promoting to nowhere": (promote, ["income@1", "--to", "qa"], "unknown environment 'qa'", 2),
    "promoting no version": (promote, ["income", "--to", "production"], "names no model version", 6),
    "approving without a key": (
        approve, ["income@1", "--env", "production", "--reason", "x"], "mlops keys init --person NAME", 6,
    ),
    "approving with nobody's key": (
        approve, ["income@1", "--env", "production", "--reason", "x", "--key", "eve"], "no key", 6,
    ),
    "approving with the machine's key": (
        approve, ["income@1", "--env", "production", "--reason", "x", "--key", "machine"], "a machine cannot", 6,
    ),
    "rolling back nowhere": (rollback, ["qa"], "unknown environment 'qa'", 2),
    "rolling back what never served": (rollback, ["production"], "nothing serves in 'production'", 2),
    "rolling back a product that never served": (
        rollback, ["production", "--product", "income"], "nothing was ever promoted to production", 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SENTENCES)
def test_a_clear_sentence_and_an_exit_code(case, project):
    command, arguments, sentence, code = SENTENCES[case]
    _, told, found = call(command, *arguments)
    assert sentence in told
    assert found == code


def test_a_dry_run_says_that_the_desired_state_was_edited_by_hand(project):
    project.release(1)
    assert not isinstance(move(project.site, project.rules, "income@1"), Refusal)
    told, _, code = call(deploy, "reconcile", "--dry-run")
    assert (told, code) == ("production should serve income: version 1 at 100 %\n", 0)
    state = project.root / "deploy" / "desired" / "production.yaml"
    state.write_text(state.read_text().replace("number: 1", "number: 7"))
    told, _, code = call(deploy, "reconcile", "--dry-run")
    assert code == 1
    assert "desired-state-edited" in told


@pytest.mark.parametrize("is_listed", [True, False])
def test_an_approval_that_does_not_count_yet_says_so(project, is_listed):
    project.release(1)
    if is_listed:
        project.add_person("eve")
    make_key(project.site.places.keys_folder, "eve-0", clock=project.site.clock)
    output, _, code = call(approve, "income@1", "--env", "production", "--reason", "x", "--key", "eve-0")
    assert code == 0
    assert ("does not count until deploy/roles.yaml" in output) is not is_listed


def test_stop_says_what_it_stopped_and_is_not_undone_by_somebody_who_watches(project):
    project.release(1)
    assert not isinstance(move(project.site, project.rules, "income@1"), Refusal)
    watcher = project.reconciler().watch(is_ending=lambda: False)
    next(watcher)  # now between two rounds
    with pytest.raises(EnvironmentFault, match="would start again"):
        list(stop_serving(project.reconciler()))
    watcher.close()
    line = f"{project.rules.name} income: proxy and instances"
    assert list(stop_serving(project.reconciler(), is_dry_run=True)) == [line]
    assert list(stop_serving(project.reconciler())) == [line]
    assert list(stop_serving(project.reconciler())) == []
    assert call(deploy, "stop")[0] == "nothing runs on this machine\n"


def test_status_and_reconcile_of_nothing(project):
    output, _, code = call(deploy, "status")
    assert (code, "nothing was promoted here yet" in output) == (0, True)
    assert json.loads(call(deploy, "status", "--json")[0])[0]["environment"] == "production"
    assert call(deploy, "reconcile", "production", "--dry-run") == ("", "", 0)
    assert call(deploy, "render", "production")[2] == 0


def test_a_release_is_shown_and_promoted(project):
    """The chain's data cannot be checked in this little project, and the command says so."""
    project.release(1)
    output, _, code = call(promote, "income@1", "--to", "production", "--dry-run", "--json")
    told = json.loads(output.split("\nrefused:")[0])
    assert code == 1
    assert not told["is_allowed"]
    assert {item["code"] for item in told["checklist"] if not item["is_kept"]} == {"chain-broken", "not-approvals"}
    assert told["release"]["number"] == 1
