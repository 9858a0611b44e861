"""A small chain on disk and in a ledger: sweep, export, gate, registration, image, as a release records them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from mlops.clock import FakeClock
from mlops.ids import CountingIds
from mlops.ledger.connection import Ledger, open_ledger, sqlite_url
from mlops.places import Places
from mlops.provenance.artefacts import find_sidecar, project_loaders
from mlops.provenance.digest import canonical_json, digest_bytes, digest_folder, digest_json, hex_of
from mlops.provenance.keyring import AcceptedKey, KeyRing
from mlops.provenance.keys import load_machine_signer
from mlops.provenance.sql_steps import StepRecord, find_steps, steps
from mlops.provenance.steps import StepBook, StepOutcome
from mlops.provenance.verify import ChainReport, ChainRules, verify_chain


@dataclass
class Chain:
    """The world of one test."""

    places: Places
    ledger: Ledger
    clock: FakeClock
    book: StepBook
    machine: str
    """Public key of the machine."""

    def step(self, kind: str) -> StepRecord:
        with self.ledger.read() as connection:
            return next(find_steps(connection, kind=kind))

    @property
    def image(self) -> str:
        return self.step("image").outputs["image"]

    def rules(self, **changes: object) -> ChainRules:
        values: dict[str, object] = {
            "keyring": KeyRing([AcceptedKey(self.machine, "machine")]),
            "loaders": project_loaders(self.places),
            **changes,
        }
        return ChainRules(**values)  # type: ignore[arg-type]

    def verify(self, *starts: str, **changes: object) -> ChainReport:
        with self.ledger.read() as connection:
            return verify_chain(connection, starts or (self.image,), rules=self.rules(**changes))

    def change_row(self, kind: str, **values: object) -> None:
        with self.ledger.write() as transaction:
            transaction.connection.execute(sa.update(steps).where(steps.c.kind == kind).values(**values))

    def record(self, kind: str, inputs: dict[str, str], outputs: dict[str, str], **facts: object) -> StepRecord:
        self.clock.advance(1)
        outcome = StepOutcome(outputs=outputs, facts=facts)
        return self.book.run(kind, product="income", inputs=inputs, action=lambda: outcome).record


def write_candidate(places: Places) -> str:
    scratch = places.candidates / "scratch"
    scratch.mkdir(parents=True)
    (scratch / "model.onnx").write_bytes(bytes(range(40)))
    (scratch / "contract.json").write_text('{"version": 1}')
    digest = digest_folder(scratch)
    scratch.rename(places.candidates / hex_of(digest))
    return digest


def write_gate(places: Places) -> str:
    content = canonical_json({"verdict": "PASS"})
    folder = places.evidence / hex_of(digest_bytes(content))
    folder.mkdir(parents=True)
    (folder / "result.json").write_bytes(content)
    return digest_bytes(content)


def write_image(places: Places) -> str:
    blobs = places.images / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def add(content: bytes) -> str:
        (blobs / hex_of(digest_bytes(content))).write_bytes(content)
        return digest_bytes(content)

    config, layer = add(b'{"os": "linux"}'), add(b"layer bytes")
    return add(json.dumps({"config": {"digest": config}, "layers": [{"digest": layer}]}).encode())


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    places, clock = Places(tmp_path / "project"), FakeClock()
    (places.root / "training").mkdir(parents=True)
    places.trainer_file("income").write_text("trainer = 1\n")
    ledger = open_ledger(sqlite_url(places.ledger_file), clock)
    signer = load_machine_signer(places.keys_folder, clock=clock)
    sidecar = partial(find_sidecar, places)
    book = StepBook(ledger, clock=clock, ids=CountingIds(), signer=signer, find_sidecar=sidecar)
    made = Chain(places, ledger, clock, book, signer.key.public)
    trainer, manifest, weights = digest_bytes(b"trainer = 1\n"), digest_bytes(b"manifest"), digest_bytes(b"weights")
    candidate, gate, image = write_candidate(places), write_gate(places), write_image(places)
    version = digest_json({"product": "income", "number": 1, "candidate": candidate, "gate": gate})
    made.record("dataset-import", {"source": digest_bytes(b"raw")}, {"manifest": manifest}, dataset="income")
    made.record(
        "sweep",
        {"trainer": trainer, "manifest": manifest},
        {"weights": weights},
        commit="0123456789abcdef",
        mlflow_run_id="run1",
        sweep_id="sweep-1",
        params={"lr": 0.1},
    )
    made.record("export", {"weights": weights, "trainer": trainer, "manifest": manifest}, {"candidate": candidate})
    made.record("gate", {"candidate": candidate, "manifest": manifest}, {"gate": gate}, verdict="PASS")
    made.record("registration", {"candidate": candidate, "gate": gate}, {"version": version}, number=1, alias="latest")
    made.record("image", {"candidate": candidate, "gate": gate, "version": version}, {"image": image})
    yield made
    ledger.close()
