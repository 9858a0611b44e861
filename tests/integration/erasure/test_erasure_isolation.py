"""An ensemble of isolated members: what an erasure trains again is the one member that read the person."""

from dataclasses import replace

from erasure_fakes import DATASET

from mlops.datasets.subjects import group_of
from mlops.datasets.version import load_dataset_version
from mlops.erasure.retraining import ReleasedVersion, plan_retrain
from mlops.provenance.digest import digest_json
from mlops.registry.mirror import DatasetReference
from mlops.training import ensemble
from mlops.training.ensemble import WEIGHTS, EnsembleRequest
from mlops.training.optuna_search import only_point
from mlops.training.spec import SweepSpec
from mlops.training.sweep import SweepRequest

SPEC = SweepSpec(
    version=1, product="p", dataset=DATASET, budget="team", objective={"metric": "loss", "direction": "minimize"},
    space={"width": {"choices": [8, 16]}}, fixed={"batch_size": 4}, trials=6, groups=2, epochs=3, workers=1,
    accelerators="1xcpu", isolation={"groups": 3},
)  # fmt: skip
PARAMS = {"width": 16, "batch_size": 4}


def test_only_the_member_that_read_the_person_is_trained_again(world, tmp_path):
    places = world.project.places

    def load_version():
        return load_dataset_version(places, DATASET)

    sweep = SweepRequest(
        spec=SPEC, trainer_file=tmp_path / "p.py", inputs={"trainer": digest_json("trainer")}, reserved={},
        dataset=DatasetReference(DATASET, "", "", "", {}), checkpoints=tmp_path / "checkpoints",
    )  # fmt: skip
    before = EnsembleRequest(sweep, load_version(), PARAMS)
    for member in before.members():
        folder = member.slices[-1].folder(sweep.checkpoints)
        folder.mkdir(parents=True)
        (folder / WEIGHTS).touch()
    released = ReleasedVersion("p", 1, "v", "i", "c", PARAMS)
    planned = plan_retrain(SPEC, released, budget="erasure")
    assert only_point(planned) == PARAMS, "so nothing is searched"
    again = EnsembleRequest(replace(sweep, spec=planned), load_version(), only_point(planned))
    assert ensemble.plan_retrain(again) == {}, "another budget trains nothing"
    train = {person: group for person, group in groups_of(world).items() if group < 3}
    person, group = min(train.items())
    world.ask(person)
    assert world.run().held is None
    assert ensemble.plan_retrain(replace(again, version=load_version())) == {group: 0}


def groups_of(world):
    """Everybody's isolation group; with three members, groups 0 to 2 are read by members 0 to 2."""
    return {f"p{number}": group_of(world.hash(f"p{number}"), groups=4) for number in range(12)}
