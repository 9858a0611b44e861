"""A tiny product, batches from memory, and a crew, leases and sweeps that need neither Ray nor money."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from mlops.budgets.lease_types import Lease, LeaseRequest, LeaveOrder, Settlement
from mlops.clock import SECOND_US, FakeClock
from mlops.datasets.reader import Batch
from mlops.errors import DatasetError, Reason, Refusal
from mlops.ids import CountingIds
from mlops.ledger.connection import open_ledger
from mlops.registry.mirror import DatasetReference, MemoryMirror
from mlops.specs import parse_spec
from mlops.training.attempt import (
    Answer,
    AttemptTask,
    Ended,
    Event,
    Gone,
    Notice,
    Progressed,
    Ready,
    Reported,
    Usage,
    split_system,
)
from mlops.training.contract import DatasetReference as ContractDataset
from mlops.training.contract import InputColumn, make_contract
from mlops.training.spec import SweepSpec
from mlops.training.sweep import SweepGround, SweepRequest, run_sweep

TRAINER = """
import torch


class Net(torch.nn.Module):
    def __init__(self, params):
        super().__init__()
        self.plan = torch.nn.Embedding(params["columns"]["plan"], 2)
        self.drop = torch.nn.Dropout(params.get("dropout", 0.1))
        self.layers = torch.nn.Linear(3, params["classes"])

    def forward(self, columns):
        return self.layers(self.drop(torch.cat([columns["age"][:, None] / 100, self.plan(columns["plan"])], 1)))


def model(params):
    return Net(params)


def train(worker, params):
    net = model(params).to(worker.device)
    fast = worker.prepare(net)
    optimizer = torch.optim.Adam(net.parameters(), params["learning_rate"])
    for _ in worker.epochs({"model": net, "optimizer": optimizer}):
        net.train()
        for batch in worker.batches("train", batch_size=16):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(fast(batch.features), batch.label).backward()
            optimizer.step()
        worker.report(worker.measure(net.eval(), "validation", sensitive="region"))
"""
SPEC = """
version: 1
product: tiny
dataset: people
budget: research
objective: {metric: loss, direction: minimize}
space:
  learning_rate: {low: 0.001, high: 0.1, log: true}
trials: 4
epochs: 3
sampler: random
workers: 1
groups: 2
"""
CONTRACT = make_contract(
    "tiny",
    features=(
        InputColumn("age", "float32", (), "number", minimum=0, maximum=120, integer=True),
        InputColumn("plan", "int64", (), "category", categories=("missing", "basic", "pro")),
    ),
    classes=("no", "yes"),
    dataset=ContractDataset("people", "sha256:" + "0" * 64),
)
RESERVED = {"columns": CONTRACT.column_sizes(), "classes": 2}


class MemorySource:
    """200 rows per split in one global order; rank r takes the positions ≡ r mod W."""

    def __init__(self, rows: int = 200) -> None:
        generator = torch.Generator().manual_seed(3)
        self.age = torch.randint(18, 90, (rows,), generator=generator).float()
        self.plan = torch.randint(0, 3, (rows,), generator=generator)
        self.region = torch.randint(0, 2, (rows,), generator=generator)
        noise = torch.rand(rows, generator=generator)
        self.label = ((self.age / 90 + self.plan / 4 + noise) > 1.2).long()

    def count_rows(self, split: str) -> int:
        return len(self.label)

    def batches(
        self,
        split: str,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        rank: int,
        world_size: int,
        start_step: int = 0,
        shuffle: bool = True,
        pin: bool = False,
    ) -> Iterator[Batch]:
        if batch_size % world_size:
            raise DatasetError(f"global batch size {batch_size} cannot be shared equally by {world_size} workers")
        order = torch.arange(len(self.label))
        if shuffle:
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed % 2**31 + epoch))
        for start in range(start_step * batch_size, len(order), batch_size):
            positions = torch.arange(start, min(start + batch_size, len(order)))[rank::world_size]
            rows = order[positions]
            yield Batch(
                features={"age": self.age[rows], "plan": self.plan[rows]},
                label=self.label[rows],
                sensitive={"region": self.region[rows]},
                weight=None,
                positions=positions,
                rows=rows,
            )


@dataclass
class ListChannel:
    """Answers reports from a list; continues when it is empty."""

    answers: list[Answer] = field(default_factory=list)
    reports: list[dict[str, float]] = field(default_factory=list)
    system: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    yield_at: int = 0

    def step(self, *, epoch: int, done: int) -> bool:
        self.steps += 1
        return 0 < self.yield_at <= self.steps

    def report(self, *, epoch: int, metrics: Mapping[str, float]) -> Answer:
        own, system = split_system(metrics)
        self.reports.append(own)
        self.system.append(system)
        return self.answers.pop(0) if self.answers else Answer.CONTINUE

    def conclude(self, *, epoch: int, metrics: Mapping[str, float]) -> None:
        self.report(epoch=epoch, metrics=metrics)


class FakeLeases:
    """Grants, and remembers; `budget` is how many reservations and renewals it grants."""

    def __init__(self, clock: FakeClock, budget: int = 10**9, *, first: int = 1) -> None:
        self.clock, self.budget, self.first = clock, budget, first
        self.live: dict[str, Lease] = {}
        self.settled: dict[str, int | None] = {}
        self.requests: list[LeaseRequest] = []
        self.withdrawn: list[str] = []
        self.orders: dict[str, LeaveOrder] = {}

    def reserve(self, request: LeaseRequest) -> Lease | Refusal:
        self.requests.append(request)
        if self.budget <= 0:
            return Refusal((Reason("cap-exceeded", "no money left"),))
        self.budget -= 1
        number = len(self.live) + len(self.settled) + self.first
        now_us = self.clock.now_us()
        ends_us = now_us + round(request.window_seconds * SECOND_US)
        self.live[f"lease-{number}"] = lease = Lease(
            lease_id=f"lease-{number}",
            fencing_token=number,
            budget=request.budget,
            accelerators=request.accelerators,
            holder=request.holder,
            sweep_id=request.sweep_id,
            purpose="training",
            started_us=now_us,
            window_ends_us=ends_us,
            expires_us=now_us + request.prepaid_us,
            price_micro_usd_per_hour=1,
            reserved_micro_usd=1,
            charged_micro_usd=0,
        )
        return lease

    def reserve_own(self, request: LeaseRequest) -> Lease | Refusal:
        return self.reserve(request)

    def report_nodes(self, found, *, kind: str) -> None:
        pass

    def withdraw(self, key: str) -> None:
        self.withdrawn.append(key)

    def find_order(self, lease_id: str) -> LeaveOrder | None:
        return self.orders.pop(lease_id, None)

    def renew(self, lease_id: str, *, fencing_token: int, window_seconds: float, key: str) -> Lease | Refusal:
        if self.budget <= 0:
            return Refusal((Reason("cap-exceeded", "no money left"),))
        self.budget -= 1
        return self.live[lease_id]

    def settle(self, lease_id: str, *, fencing_token: int, ended_us: int | None, key: str) -> Settlement | Refusal:
        lease = self.live.pop(lease_id)
        self.settled[lease_id] = ended_us
        return Settlement(lease.lease_id, ended_us or 0, 0, 0, "settled")


class FakeCrew:
    """Groups in virtual time: each epoch takes `seconds(trial, epoch)`; metrics come from `score(params, epoch)`.

    `accidents` maps (trial, attempt, epoch) to `lost`, `preempted`, `storage`, `failed`, `hung`, `drained` or `deaf`.
    """

    runs_ahead = True

    def __init__(
        self,
        clock: FakeClock,
        *,
        score: Callable[[Mapping[str, Any], int], dict[str, float]],
        seconds: Callable[[int, int], float] = lambda trial, epoch: 1.0,
        accidents: Mapping[tuple[int, int, int], str] | None = None,
        weights: Path | None = None,
        kept: list[str] | None = None,
    ) -> None:
        self.clock, self.score, self.seconds = clock, score, seconds
        self.accidents = dict(accidents or {})
        self.weights = weights
        self.groups: dict[str, dict[str, Any]] = {}
        self.due: list[tuple[int, int, Event]] = []
        self.log: list[tuple[str, Any]] = []
        self.checkpoints: dict[int, int] = {}
        self.kind = "" if kept is None else "same"
        self.kept = [] if kept is None else kept
        self.room = 100
        self.growth_bytes, self.ticks, self.deaf = 0, 0.0, False
        self._count = 0

    def start_group(self, name: str, *, shape: Any, until_us: int, start_deadline_seconds: float) -> None:
        self.groups[name] = {"until_us": until_us, "task": None, "following": None}
        ready = Ready(name, "cpu", start_us=2 * SECOND_US)
        self._later(2.0, ready if shape.workers <= self.room else Gone(name, "no place for all its workers"))

    def likeness(self, shape: Any) -> str:
        return self.kind

    def adopt_group(self, name: str, *, shape: Any, until_us: int) -> bool:
        if name not in self.kept:
            return False
        self.kept.remove(name)
        self.log.append(("adopt", name))
        self.groups[name] = {"until_us": until_us, "task": None, "following": None}
        self._later(0.01, Ready(name, "cpu", start_us=10_000))
        return True

    def keep_group(self, name: str, *, until_us: int) -> bool:
        self.kept.append(name)
        self.groups.pop(name)
        return True

    def end_left_over(self, names: Any) -> list[str]:
        self.log.extend(("left over", name) for name in names)
        found = [name for name in names if name in self.kept]
        self.kept[:] = [name for name in self.kept if name not in found]
        return found

    def extend(self, name: str, *, until_us: int) -> None:
        self.groups[name]["until_us"] = until_us

    def begin(self, name: str, task: AttemptTask) -> None:
        self.log.append(("begin", (task.trial, task.attempt)))
        if self.groups[name]["task"] is None:
            self._start(name, task)
        else:
            assert self.groups[name]["following"] is None
            self.groups[name]["following"] = task
            self.log.append(("begin ahead", (task.trial, task.attempt)))

    def _start(self, name: str, task: AttemptTask) -> None:
        group = self.groups[name]
        group["task"], group["following"] = task, None
        group["epoch"] = self.checkpoints.get(task.trial, 0) if task.attempt else 0
        self._run_epoch(name)

    def answer(self, name: str, answer: Answer) -> None:
        group = self.groups[name]
        task, epoch = group["task"], group["epoch"]
        self.log.append(("answer", (task.trial, epoch, answer)))
        if answer is Answer.PRUNE:
            self._end(name, "pruned")
        else:
            self.checkpoints[task.trial] = epoch + 1
            if answer is Answer.YIELD:
                self._end(name, "yielded")
            else:
                group["epoch"] += 1
                self._run_epoch(name)

    def ask_yield(self, name: str) -> None:
        self.log.append(("ask yield", name))
        if not self.deaf and self.groups[name].get("task") and not any(item[2].group == name for item in self.due):
            self._end(name, "yielded")

    def stop_group(self, name: str) -> None:
        self.groups.pop(name)
        self.log.append(("stop", name))

    def next_events(self, *, timeout_seconds: float) -> list[Event]:
        limit_us = self.clock.monotonic_us() + round(timeout_seconds * SECOND_US)
        self.due.sort(key=lambda item: item[:2])
        if not self.due or self.due[0][0] > limit_us:
            self.clock.advance(timeout_seconds)
            return []
        at_us, _, event = self.due.pop(0)
        self.clock.advance(max(0, at_us - self.clock.monotonic_us()) / SECOND_US)
        together = [item for item in self.due if item[0] == at_us and item[2].group == event.group]
        self.due = [item for item in self.due if item not in together]
        events = [event, *(item[2] for item in together)]
        if event.group in self.groups and any(isinstance(each, Ended) for each in events):
            group = self.groups[event.group]
            group["task"] = None
            if group["following"] is not None and not any(isinstance(each, Gone) for each in events):
                self._start(event.group, group["following"])
        return events

    def close(self) -> None:
        self.log.append(("close", None))

    def _run_epoch(self, name: str) -> None:
        task, epoch = self.groups[name]["task"], self.groups[name]["epoch"]
        accident = self.accidents.pop((task.trial, task.attempt, epoch), None)
        seconds = self.seconds(task.trial, epoch)
        for tick in range(1, int(seconds / self.ticks)) if self.ticks else ():
            self._later(tick * self.ticks, Progressed(name, task.trial, epoch, tick))
        if accident == "lost":
            self._later(seconds, Gone(name, "worker 1 died"))
        elif accident == "preempted":
            self._later(seconds, Gone(name, "its node has died", is_preemption=True))
        elif accident == "storage":
            self._later(seconds, self._ended(name, "lost", reason="cannot write"))
            self._later(seconds, Gone(name, "given up after its trial failed"))
        elif accident in ("drained", "deaf"):
            self.deaf = accident == "deaf"
            self._later(0.0, Notice(name, 30.0, "its node is drained"))
            if not self.deaf:
                self.checkpoints[task.trial] = epoch
        elif accident == "failed":
            self._later(seconds, self._ended(name, "failed", reason="trainer.py:3: ValueError: no"))
            self._later(seconds, Gone(name, "given up after its trial failed"))
        elif accident != "hung":
            metrics = self.score(task.params, epoch)
            waited = {"system/data_wait_ms_per_step": 2.5}
            self._later(seconds, Reported.of(name, task, epoch=epoch, numbers={**metrics, **waited}))
            if epoch + 1 == task.epochs:
                self._later(seconds, self._ended(name, "complete"))

    def _end(self, name: str, outcome: str) -> None:
        self._later(0.0, self._ended(name, outcome))

    def _ended(self, name: str, outcome: str, reason: str = "") -> Ended:
        task = self.groups[name]["task"]
        weights = ""
        if outcome == "complete" and self.weights is not None:
            path = self.weights / f"{task.trial}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"weights")
            weights = str(path)
        usage = Usage(busy_us=SECOND_US, data_wait_us=1_000, growth_bytes=self.growth_bytes)
        return Ended(name, task.trial, task.attempt, outcome, usage, weights, "sha256:" + "1" * 64, reason)

    def _later(self, seconds: float, event: Event) -> None:
        self._count += 1
        self.due.append((self.clock.monotonic_us() + round(seconds * SECOND_US), self._count, event))


@cache
def empty_ledger() -> bytes:
    """A migrated ledger: copying it takes a hundredth of the time of migrating another one."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "ledger.sqlite")
        open_ledger(f"sqlite:///{file}", FakeClock()).close()
        return file.read_bytes()


@dataclass
class Stage:
    """Everything a sweep runs on, in memory."""

    folder: Path
    clock: FakeClock = field(default_factory=FakeClock)
    ids: CountingIds = field(default_factory=CountingIds)
    mirror: MemoryMirror = field(default_factory=MemoryMirror)
    lines: deque[str] = field(default_factory=deque)

    def __post_init__(self) -> None:
        (self.folder / "ledger.sqlite").write_bytes(empty_ledger())
        self.ledger = open_ledger(f"sqlite:///{self.folder / 'ledger.sqlite'}", self.clock)
        self.leases = FakeLeases(self.clock)
        self.trainer = self.folder / "tiny.py"
        self.trainer.write_text(TRAINER)

    def spec(self, **changes: Any) -> SweepSpec:
        base = parse_spec(SPEC, SweepSpec, source="tiny.yaml").to_json()
        return SweepSpec.model_validate({**_as_written(base), **changes})

    def crew(self, **options: Any) -> FakeCrew:
        options.setdefault("score", lambda params, epoch: {"loss": params["learning_rate"] + 1 / (epoch + 1)})
        return FakeCrew(self.clock, weights=self.folder / "weights", **options)

    def request(self, spec: SweepSpec) -> SweepRequest:
        return SweepRequest(
            spec=spec,
            trainer_file=self.trainer,
            inputs={"trainer": "sha256:" + "a" * 64, "spec": f"seed {spec.seed}"},
            reserved=RESERVED,
            dataset=DatasetReference("people", "sha256:" + "0" * 64),
            checkpoints=self.folder / "checkpoints",
        )

    def run(self, spec: SweepSpec, crew: FakeCrew, leases: FakeLeases | None = None) -> Any:
        ground = SweepGround(
            ledger=self.ledger,
            clock=self.clock,
            ids=self.ids,
            leases=leases or self.leases,
            mirror=self.mirror,
            open_crew=lambda: crew,
            say=self.lines.append,
        )
        return run_sweep(self.request(spec), ground)


def _as_written(content: dict[str, Any]) -> dict[str, Any]:
    """Durations back to how people write them."""
    durations = ("lease_window", "grace", "checkpoint_time", "idle", "start_deadline", "silence", "yield_deadline")
    return {name: f"{value}s" if name in durations else value for name, value in content.items()}


@pytest.fixture(scope="module")
def module_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """For one sweep that many tests compare with."""
    made = Stage(tmp_path_factory.mktemp("stage"))
    yield made
    made.ledger.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.ledger.close()


@pytest.fixture
def source() -> MemorySource:
    return MemorySource()


@pytest.fixture
def make_task(tmp_path: Path) -> Callable[..., AttemptTask]:
    trainer = tmp_path / "tiny.py"
    trainer.write_text(TRAINER)

    def make(**changes: Any) -> AttemptTask:
        values: dict[str, Any] = {
            "sweep_id": "sweep-1",
            "trial": 0,
            "attempt": 0,
            "params": {"learning_rate": 0.05, **RESERVED},
            "seed": 7,
            "epochs": 3,
            "trainer_file": str(trainer),
            "trainer_digest": "",
            "trial_folder": str(tmp_path / "trial"),
            "checkpoint_epochs": 1,
            "required_metrics": ("loss",),
        }
        return AttemptTask(**{**values, **changes})

    return make


@pytest.fixture
def channel() -> type[ListChannel]:
    return ListChannel


@pytest.fixture
def contract() -> Any:
    return CONTRACT


@pytest.fixture
def leases_of() -> type[FakeLeases]:
    return FakeLeases
