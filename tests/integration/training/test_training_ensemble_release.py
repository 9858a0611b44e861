"""An ensemble by isolation, for real: search, members on Ray, gate, MLflow; then one person is forgotten."""

import json
import re
import subprocess
from functools import partial

import pytest

from mlops.datasets.subjects import group_of, hash_subject
from mlops.datasets.version import load_dataset_version, read_split
from mlops.erasure.affected import find_affected
from mlops.erasure.clean_version import make_clean_version
from mlops.erasure.purging import purge
from mlops.erasure.requests import Submission, submit_requests
from mlops.erasure.retraining import ReleasedVersion, plan_retrain, retrain_steps
from mlops.errors import Refusal
from mlops.project.opening import open_project
from mlops.project.scaffold import import_scaffold, write_scaffold
from mlops.registry.mlflow_door import artifact_root, open_client, tracking_uri
from mlops.release import STEPS, Release, run_steps
from mlops.training.candidate import load_candidate
from mlops.training.ensemble import EnsembleRequest, find_trained
from mlops.training.launch import make_request
from mlops.training.ray_cluster import stop_local
from mlops.training.spec import load_sweep_spec
from mlops.training.sweep_view import load_sweep_row

pytestmark = pytest.mark.timeout(600)
GROUP = 4
"""Of the second slice of member 1, with nine groups in the train split, three members and two slices."""
POLICY = """
version: 1
product: churn
favourable_class: "no"
alpha: 0.05
checks:
  - {name: parity, kind: parity, title: As trained, maximum: 0.00001, owner: a, reason: "Float32, in another order."}
  - {name: accuracy, kind: accuracy, title: Right, minimum: 0.5, owner: a, reason: "Better than a coin is enough here."}
"""
MEMBER, LINE = 1, re.compile(r"trial \d+ epoch (\d+)/(\d+)")


@pytest.fixture
def project(tmp_path):
    """A new project whose sweep asks for three members of two slices; nothing is built or probed."""
    scaffold = write_scaffold(tmp_path / "churn", product="churn")
    spec = scaffold.root / "training" / "churn.yaml"
    text = spec.read_text().replace("trials: 4", "trials: 2").replace("epochs: 4", "epochs: 3")
    spec.write_text(f"{text}idle: 20s\nisolation: {{groups: 3, slices: 2}}\n")
    (scaffold.root / "evaluation" / "churn.yaml").write_text(POLICY)
    with (scaffold.root / ".gitignore").open("a") as stream:
        stream.write("/datasets/churn.csv\n")
    import_scaffold(scaffold)
    identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-q", "-m", "Start")):
        subprocess.run(["git", *command], cwd=scaffold.root, check=True)
    opened = open_project(scaffold.root)
    yield opened
    stop_local(opened.places)
    opened.ledger.close()


def bake(project, spec, steps):
    """Up to the registration; what was said."""
    lines: list[str] = []
    release = Release("churn", spec, project.workbench(lines.append), project.person, allow_dirty=False)
    done = run_steps(release, {name: step for name, step in steps.items() if name not in ("image", "probe")})
    assert not isinstance(done, Refusal), done.render_text()
    return done, lines


def test_a_released_ensemble_forgets_a_person_by_training_one_member_from_its_last_clean_slice(project):
    places = project.places
    spec = load_sweep_spec(places.sweep_file("churn"))
    first, lines = bake(project, spec, STEPS)
    assert "ensemble: 0 of 3 members are there; training member 0 from slice 1 of 2" in "\n".join(lines)
    facts = first.done("sweep").facts
    assert facts["summary"].startswith("3 isolated members, 3 trained now, joined; by trial")
    candidate = load_candidate(places.candidates / first.done("export").outputs["candidate"].partition(":")[2])
    assert (candidate.members, len(list(candidate.load_module().members))) == (3, 3)
    before = weights_by_member(places)
    assert sorted(before) == [0, 1, 2]

    person = find_person(places, group=GROUP)
    with_hash = partial(hash_subject, key=b"churn-example")
    submit_requests(project, "churn", [Submission(with_hash(person), "command", "nonce-1")])
    assert not isinstance(make_clean_version(project, "churn", [with_hash(person)]), Refusal)
    released = ReleasedVersion("churn", 1, "v", "i", "c", facts["params"])
    planned = plan_retrain(spec, released, budget="erasure")
    again, lines = bake(project, planned, retrain_steps(project, withdrawn=frozenset({with_hash(person)})))
    assert "ensemble: 2 of 3 members are there; training member 1 from slice 2 of 2" in lines
    epochs = [(int(found[1]), int(found[2])) for found in map(LINE.match, lines) if found]
    assert epochs == [(3, 4), (4, 4)], "one member, from the end of its first slice; no search"
    for step in (first.done("registration"), again.done("registration")):
        assert open_client(tracking_uri(places), artifacts=artifact_root(places)).get_run(step.facts["run_id"])
    assert again.done("gate").facts["verdict"] == "PASS"

    version = load_dataset_version(places, "churn")
    request = make_request(places, planned, version=version, tags={}, spender="")
    sweep_id, trained = find_trained(EnsembleRequest(request, version, facts["params"]), project.ledger)
    assert (sweep_id, len(trained)) == (again.done("sweep").facts["sweep_id"], 1), "after a kill nothing is repeated"
    assert load_sweep_row(project.ledger, sweep_id).winner is None, "members are joined, none of them wins"

    receipts = purge(project, find_affected(project, "churn", frozenset({with_hash(person)})), say=print, runtimes=())
    assert any(it.store == "checkpoints" and it.what.startswith("slices") for it in receipts)
    after = weights_by_member(places)
    assert {member for member in after if after[member] != before[member]} == {MEMBER}
    assert sorted(after) == [0, 1, 2], "the other members stay for the next batch"


def find_person(places, *, group):
    """The id of somebody in an isolation group: rows keep only the hash, the raw file has the ids."""
    version = load_dataset_version(places, "churn")
    held = set(read_split(version, "train", columns=["subject"]).column("subject").to_pylist())
    rows = (places.root / "datasets" / "churn.csv").read_text().splitlines()[1:]
    hashes = {row.split(",")[0]: hash_subject(row.split(",")[0], key=b"churn-example") for row in rows[:500]}
    return next(name for name, it in hashes.items() if it in held and group_of(it, groups=16) == group)


def weights_by_member(places):
    """Member to the bytes of its weights, from the slice folders."""
    return {
        json.loads((path.parent / "shards.json").read_text())["member"]: path.read_bytes()
        for path in (places.checkpoints / "slices").glob("*/weights.safetensors")
    }
