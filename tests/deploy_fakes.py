"""What tests of the deploy room share: a project in git, releases without training, a runtime of plain processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlops.clock import Clock, SystemClock
from mlops.deploy.desired_state import ServedVersion
from mlops.deploy.environment import EnvironmentSpec
from mlops.deploy.instance_check import GoldenCase
from mlops.deploy.reconciler import Reconciler, stop_serving
from mlops.deploy.site import Site
from mlops.errors import ServingError
from mlops.ids import TimeIds
from mlops.ledger.connection import open_ledger, sqlite_url
from mlops.places import Places
from mlops.provenance.digest import canonical_json, digest_bytes, digest_file, digest_folder, digest_json, hex_of
from mlops.provenance.keys import load_machine_signer, make_key
from mlops.provenance.steps import StepBook, StepOutcome
from mlops.provenance.verify import FoundBytes
from mlops.serving.oci_layout import CONFIG_TYPE, MANIFEST_TYPE, ImageLayout
from mlops.serving.runtime import SOCKET_NAME, Instance, RunRequest, remove_ended_logs, require_idle

STUB_SERVER = Path(__file__).with_name("deploy_stub_server.py")
CODE = digest_bytes(b"code")
CONTRACT: dict[str, Any] = {
    "version": 1,
    "product": "income",
    "inputs": [
        {"name": "age", "dtype": "float32", "shape": [], "kind": "number", "minimum": 17, "maximum": 90,
         "integer": True, "categories": None},
        {"name": "sex", "dtype": "int64", "shape": [], "kind": "category", "minimum": None, "maximum": None,
         "integer": False, "categories": ["Female", "Male"]},
    ],
    "outputs": [{"name": "probabilities", "dtype": "float32", "shape": [2]}],
    "classes": ["<=50K", ">50K"],
    "dataset": {"name": "income", "digest": digest_bytes(b"manifest")},
}  # fmt: skip


@dataclass
class ProcessRuntime:
    """A fake of `Runtime`: the stub server as a plain process, told its faults by the image's configuration."""

    state: Path
    name: str = "process"
    started: list[str] = field(default_factory=list)
    children: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, request: RunRequest) -> Instance:
        if any(instance.name == request.name for instance in self.list_instances()):
            raise ServingError(f"{request.name} is running already")
        store = ImageLayout(request.layout)
        config = json.loads(store.read_blob(store.read_manifest(request.digest)["config"]["digest"]))
        request.socket_folder.mkdir(parents=True, exist_ok=True)
        for name in (SOCKET_NAME, "unhealthy"):
            (request.socket_folder / name).unlink(missing_ok=True)
        self.state.mkdir(parents=True, exist_ok=True)
        with (self.state / f"{request.name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-S", "-E", str(STUB_SERVER), request.name],
                cwd=request.socket_folder,
                env={"STUB": json.dumps(config["stub"]), "SOCKET": SOCKET_NAME},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started.append(request.digest)
        self.children[process.pid] = process
        identity = f"{process.pid}:{time.monotonic_ns()}"
        instance = Instance(
            request.name, self.name, identity, request.digest, request.socket_folder / SOCKET_NAME, request.tcp_port
        )
        record = {**vars(instance), "socket": str(instance.socket)}
        (self.state / f"{request.name}.json").write_text(json.dumps(record))
        return instance

    def is_running(self, instance: Instance) -> bool:
        pid = int(instance.identity.split(":")[0])
        if pid in self.children:
            return self.children[pid].poll() is None
        try:
            return instance.name in Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            return False

    def stop(self, instance: Instance, *, timeout_seconds: float) -> int | None:
        pid = int(instance.identity.split(":")[0])
        deadline = time.monotonic() + timeout_seconds
        if self.is_running(instance):
            os.kill(pid, signal.SIGTERM)
        while self.is_running(instance):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        (self.state / f"{instance.name}.json").unlink(missing_ok=True)
        return None

    def logs(self, instance: Instance) -> str:
        path = self.state / f"{instance.name}.log"
        return path.read_text() if path.exists() else ""

    def forget_image(self, digest: str, *, layout: Path) -> bool:
        require_idle(self.list_instances(), digest)
        remove_ended_logs(self.state, self.list_instances())
        return False

    def list_instances(self) -> tuple[Instance, ...]:
        found = []
        for path in sorted(self.state.glob("*.json")):
            record = json.loads(path.read_text())
            instance = Instance(**{**record, "socket": Path(record["socket"])})
            if self.is_running(instance):
                found.append(instance)
        return tuple(found)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def git(folder: Path, *arguments: str, author: str = "zoe@example.org") -> str:
    identity = ("-c", "user.name=Someone", "-c", f"user.email={author}", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@dataclass
class World:
    """A project with a site, and everything done to it by short calls."""

    site: Site
    rules: EnvironmentSpec
    runtime: Any

    @property
    def root(self) -> Path:
        return self.site.places.root

    def write(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def commit(self, message: str = "Change", *, author: str = "zoe@example.org") -> str:
        git(self.root, "add", "-A", author=author)
        git(self.root, "commit", "-q", "--allow-empty", "-m", message, author=author)
        return git(self.root, "rev-parse", "HEAD")

    def reconciler(self, **changes: Any) -> Reconciler:
        content = {"site": self.site, "rules": self.rules, "runtime": self.runtime, "golden": golden}
        return Reconciler(**{**content, "patience_seconds": 0.0, **changes})

    def with_rules(self, **changes: Any) -> World:
        return replace(self, rules=self.rules.model_copy(update=changes))

    def add_person(
        self, name: str, *, keys: int = 1, roles: Sequence[str] = ("approver",), until: str | None = None
    ) -> None:
        """Make keys and enter them into deploy/roles.yaml."""
        people = json.loads((self.root / "people.json").read_text()) if (self.root / "people.json").exists() else {}
        public = [
            make_key(self.site.places.keys_folder, f"{name}-{number}", clock=self.site.clock).public
            for number in range(keys)
        ]
        entries = [{"public": key, **({"until": until} if until else {})} for key in public]
        people[name] = {"emails": [f"{name}@example.org"], "keys": entries, "roles": list(roles)}
        self.write("people.json", json.dumps(people))
        self.write("deploy/roles.yaml", json.dumps({"version": 1, "people": people}))

    def release(
        self,
        number: int,
        *,
        write_candidate: Callable[[Path], object] | None = None,
        build: Callable[[Path], str] | None = None,
        data: tuple[str, str, str] = ("income", digest_bytes(b"manifest"), "x"),
        sweep_id: str = "",
        **stub: Any,
    ) -> str:
        """Steps, candidate, evidence and image of a version, as a release leaves them; returns the image's digest.

        Args:
            number: Of the version.
            write_candidate: Fills a candidate folder; by default with what the stub server's golden cases need.
            build: Candidate folder to the digest of an image in the layout; by default a stub image.
            data: Name, digest and DVC digest of the dataset version.
            sweep_id: Of the sweep.
            stub: Faults of the stub server.
        """
        places, book = self.site.places, self.site.step_book
        commit = git(self.root, "rev-parse", "HEAD")

        def step(kind: str, inputs: dict[str, str], outputs: dict[str, str], **facts: Any) -> dict[str, str]:
            outcome = StepOutcome(outputs=outputs, facts=facts)
            book.record(kind, product="income", inputs=inputs, outcome=outcome, started_us=self.site.clock.now_us())
            return outputs

        trainer = digest_file(places.trainer_file("income"))
        dataset, manifest, dvc_digest = data
        step(
            "dataset-import",
            {"source": CODE, "code": CODE},
            {"manifest": manifest},
            dataset=dataset,
            dvc_digest=dvc_digest,
            rows=1,
        )
        report = digest_json({"report": number})
        step("source-check", {"trainer": trainer, "code": CODE}, {"report": report}, commit=commit, is_dirty=False)
        weights = digest_json({"weights": number})
        step("sweep", {"trainer": trainer, "manifest": manifest, "source_report": report, "code": CODE},
             {"weights": weights}, commit=commit, sweep_id=sweep_id)  # fmt: skip
        folder = places.candidates / "new"
        folder.mkdir(parents=True)
        if write_candidate is None:
            (folder / "contract.json").write_text(json.dumps(CONTRACT))
            (folder / "model.onnx").write_text(f"model {number}")
        else:
            write_candidate(folder)
        candidate = digest_folder(folder)
        folder.rename(places.candidates / hex_of(candidate))
        step(
            "export",
            {"weights": weights, "trainer": trainer, "manifest": manifest, "code": CODE},
            {"candidate": candidate},
        )
        gate = self._evidence({"verdict": "PASS", "number": number})
        policy = digest_file(places.policy_file("income"))
        judged = {"candidate": candidate, "policy": policy, "manifest": manifest, "incidents": CODE, "code": CODE}
        step("gate", judged, {"gate": gate}, verdict=stub.pop("verdict", "PASS"))
        version = digest_json({"product": "income", "number": number, "candidate": candidate, "gate": gate})
        step("registration", {"candidate": candidate, "gate": gate, "source_report": report, "code": CODE},
             {"version": version}, number=number, alias="latest")  # fmt: skip
        kept = places.candidates / hex_of(candidate)
        image = build(kept) if build else put_stub_image(places.images, number=number, **stub)
        step(
            "image",
            {"candidate": candidate, "gate": gate, "version": version, "code": CODE},
            {"image": image},
            number=number,
        )
        probe = self._evidence({"probe": number})
        step("probe", {"image": image, "candidate": candidate, "code": CODE}, {"probe": probe}, verdict="PASS")
        return image

    def _evidence(self, content: dict[str, Any]) -> str:
        digest = digest_json(content)
        path = self.site.places.evidence / hex_of(digest) / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(canonical_json(content))
        return digest


def put_stub_image(layout: Path, *, number: int, layer: bytes = b"layer", **stub: Any) -> str:
    """An image whose only content is what the stub server is told; plain processes can run it."""
    store = ImageLayout(layout)
    config = canonical_json({"architecture": "amd64", "os": "linux", "config": {}, "stub": {"number": number, **stub}})
    blob = layer + str(number).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": store.add_blob(config), "size": len(config)},
        "layers": [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": store.add_blob(blob), "size": len(blob)}
        ],
    }
    return store.put_image(manifest, reference=f"income:{number}", annotations={})


def golden(product: str, version: ServedVersion) -> Sequence[GoldenCase]:
    """The stub's right answer is what it was asked."""
    body = json.dumps({"rows": [0.25, 0.75]}).encode()
    return (GoldenCase(f"/v2/models/{product}/infer", body, {"probabilities": [0.25, 0.75]}),)


def make_rules(**changes: Any) -> EnvironmentSpec:
    content: dict[str, Any] = {
        "version": 1,
        "name": "production",
        "approvals": {"needed": 0},
        "traffic": {"ports": {"income": free_port()}, "steps": [50, 100], "step_wait": "0.05s", "drain": "2s"},
        "health": {"start_within": "5s", "interval": "0.05s", "failures": 2},
        "rollback": {"after_replacements": 2},
    }
    return EnvironmentSpec.model_validate({**content, **changes})


@contextmanager
def make_world(folder: Path, *, clock: Clock | None = None, **rules: Any) -> Iterator[World]:
    """A project in git with one commit; everything it started ends with the block."""
    root = folder / "project"
    used = clock or SystemClock()
    for path, text in {
        "datasets.dvc": "outs: []\n",
        "training/income.py": "# trainer\n",
        "training/income.yaml": "{}\n",
        "evaluation/income.yaml": "version: 1\nchecks:\n  - {name: accuracy, kind: accuracy, minimum: 0.8}\n",
        "deploy/roles.yaml": "version: 1\npeople: {}\n",
        ".gitignore": ".mlops/\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    git(root, "init", "-q")
    site = open_site(root, used)
    world = World(site, make_rules(**rules), ProcessRuntime(folder / "processes"))
    world.commit("Start")
    try:
        yield world
    finally:
        for _ in stop_serving(world.reconciler()):
            pass
        for instance in world.runtime.list_instances():
            world.runtime.stop(instance, timeout_seconds=1)
        site.ledger.close()


def open_site(root: Path, clock: Clock) -> Site:
    places = Places(root)
    ledger = open_ledger(sqlite_url(places.ledger_file), clock)
    ids = TimeIds(clock)
    book = StepBook(ledger, clock=clock, ids=ids, signer=load_machine_signer(places.keys_folder, clock=clock))
    return Site(places, ledger, clock, ids, book, manifest_loader=lambda step, digest: FoundBytes(digest, "fake"))


def open_world(root: Path, rules: EnvironmentSpec) -> World:
    """The same project from another process."""
    return World(open_site(root, SystemClock()), rules, ProcessRuntime(root.parent / "processes"))


def utc_day(offset_days: int) -> str:
    return datetime.fromtimestamp(time.time() + offset_days * 86_400, tz=UTC).date().isoformat()
