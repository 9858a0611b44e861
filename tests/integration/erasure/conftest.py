"""A project with people in a CSV file, models trained on them, and environments that serve them; no training."""

import importlib.util
import io
import json
import runpy
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

_SPEC = importlib.util.spec_from_file_location("deploy_fakes", Path(__file__).parents[2] / "deploy_fakes.py")
if "deploy_fakes" not in sys.modules:
    sys.modules["deploy_fakes"] = importlib.util.module_from_spec(_SPEC)
    _SPEC.loader.exec_module(sys.modules["deploy_fakes"])
_FAKES = importlib.util.spec_from_file_location("erasure_fakes", Path(__file__).parents[2] / "erasure_fakes.py")
if "erasure_fakes" not in sys.modules:
    sys.modules["erasure_fakes"] = importlib.util.module_from_spec(_FAKES)
    _FAKES.loader.exec_module(sys.modules["erasure_fakes"])
_PEOPLE = runpy.run_path(str(Path(__file__).parents[2] / "unit/datasets/conftest.py"), run_name="datasets_conftest")

from deploy_fakes import CONTRACT, World, make_world  # noqa: E402
from erasure_fakes import ErasureWorld, make_erasure_world  # noqa: E402

from mlops.datasets.importing import import_dataset  # noqa: E402
from mlops.datasets.subjects import hash_subject  # noqa: E402
from mlops.datasets.version import DatasetVersion, load_dataset_version  # noqa: E402
from mlops.deploy.promoting import promote  # noqa: E402
from mlops.errors import Refusal  # noqa: E402
from mlops.files import write_atomically  # noqa: E402
from mlops.project.opening import Project  # noqa: E402
from mlops.provenance.digest import canonical_json, digest_bytes, digest_file  # noqa: E402
from mlops.serving.oci_layout import CONFIG_TYPE, MANIFEST_TYPE, ImageLayout  # noqa: E402
from mlops.training import sql_trials  # noqa: E402

PERSON = "person-unique"
SPEND = "48151.62342"
"""Nobody else has it: what a scan for rows looks for."""


@dataclass
class Machine:
    """One project in which the person is everywhere."""

    world: World
    project: Project

    @property
    def places(self):
        return self.project.places

    @property
    def subject(self) -> bytes:
        return hash_subject(PERSON, key=b"test")

    def version(self) -> DatasetVersion:
        return load_dataset_version(self.places, "people")

    def train(self, number: int) -> str:
        """What a release of a version leaves behind, with the person's value wherever a row could be; the image."""
        version, sweep_id = self.version(), f"sweep-{number}"
        with self.project.ledger.write() as transaction:
            common = {
                "state": "finished",
                "started_us": number,
                "finished_us": number,
                "reason": "",
                "mlflow_run_id": "",
            }
            sql_trials.insert(
                transaction.connection, sql_trials.sweeps, sweep_id=sweep_id, product="income", spec={}, driver="x",
                seen_us=number, winner=0, wish="", inputs={"manifest": version.digest}, **common,
            )  # fmt: skip
        trial = self.places.checkpoints / sweep_id / "00000"
        trial.mkdir(parents=True)
        is_in = self.subject in {row for split in version.manifest.splits for row in self._subjects(version, split)}
        value = float(SPEND) if is_in else float(number)
        save_file({"memorised": np.array([1.0, value], np.float64)}, trial / "weights.safetensors")

        def write_candidate(folder: Path) -> None:
            dataset = {"name": "people", "digest": version.digest}
            (folder / "contract.json").write_text(json.dumps({**CONTRACT, "dataset": dataset}))
            (folder / "model.onnx").write_text(f"model {number} memorised {value}")

        data = ("people", version.digest, version.dvc_digest)
        return self.world.release(
            number, write_candidate=write_candidate, build=lambda kept: self._build(number, kept), data=data,
            sweep_id=sweep_id,
        )  # fmt: skip

    def promote(self, number: int) -> None:
        done = promote(self.world.site, self.world.rules, f"income@{number}")
        assert not isinstance(done, Refusal), done.render_text()

    def reconcile(self) -> None:
        outcome = self.world.reconciler().run_once()
        assert not isinstance(outcome, Refusal), outcome.render_text()

    def _subjects(self, version: DatasetVersion, split: str) -> list[bytes]:
        from mlops.datasets.version import read_split

        return read_split(version, split, columns=["subject"]).column("subject").to_pylist()

    def _build(self, number: int, candidate: Path) -> str:
        """An image with a base layer that all share and one with the model."""
        store = ImageLayout(self.places.images)
        stub = {"architecture": "amd64", "os": "linux", "config": {}, "stub": {"number": number}}
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            archive.add(candidate / "model.onnx", "models/model.onnx")
        config, layers = canonical_json(stub), (b"base layer of all images", packed.getvalue())
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": store.add_blob(config), "size": len(config)},
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": store.add_blob(blob),
                    "size": len(blob),
                }
                for blob in layers
            ],
        }
        return store.put_image(manifest, reference=f"income:{number}", annotations={})


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with make_world(tmp_path) as world:
        site = world.site
        project = Project(site.places, site.clock, site.ids, f"sqlite:///{site.places.ledger_file}")
        people = _PEOPLE["People"](site.places, json.loads(json.dumps(_PEOPLE["RECIPE"])), _PEOPLE["make_rows"](200))
        people.recipe["columns"][0] = {"name": "spend", "kind": "number", "roles": ["feature"]}
        people.rows = [{**row, "spend": row.pop("age")} for row in people.rows]
        people.rows.append({"person": PERSON, "spend": SPEND, "plan": "pro", "region": "north", "left": "no"})
        people.write()
        world.write(".gitignore", ".mlops/\n/datasets/people.csv\n")
        import_dataset(site.places, "people")
        world.commit("Import people")
        yield Machine(world, project)
        project.ledger.close()


@pytest.fixture
def digests():
    """What a test needs to name things by."""
    return digest_bytes, digest_file, write_atomically


@pytest.fixture
def world(tmp_path: Path) -> ErasureWorld:
    return make_erasure_world(tmp_path / "project", rules={"window": "1d"})
