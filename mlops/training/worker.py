"""The `worker` that a trainer gets: this process's part of the data, of the group and of the talk with the machine.

The same class runs in a Ray actor, in this process and in the contract check. Under one seed it is deterministic:
randomness is seeded anew at the start of a trial and of every epoch, so a resumed trial equals an uninterrupted one.
Leaves to others: carrying reports (a `Channel`), the order of rows (mlops/datasets), what a report leads to (driver).
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import math
import random
import re
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mlops.datasets.reader import Batch
from mlops.errors import EnvironmentFault, TrainingError
from mlops.training.attempt import SYSTEM_PREFIX, Answer, AttemptResult, AttemptTask, BatchSource, Usage
from mlops.training.audit_pool import choose_pool, draw_members, keep_mask, save_audit, score_pool, select_rows
from mlops.training.checkpoints import CheckpointWriter, fence_folder, load_newest, require_unfenced, save_weights
from mlops.training.data_parallel import make_parallel
from mlops.training.measuring import measure
from mlops.training.private_training import PrivateTraining, keep_privacy, make_private
from mlops.training.random_state import pack_random, unpack_random
from mlops.training.seeds import derive_seed
from mlops.training.trainer import load_trainer

MEASURE_BATCH_SIZE = 8192
YIELD_STEPS = 8
"""The workers of a group agree so often, in steps, whether they yield: asking costs a message each."""
STEPS_PER_PASS = 10_000_000
WRITES = "a trainer writes only below `worker.folder` and to temporary files"
_DENIED = re.compile("permission denied|readonly database|unable to open database|cross-device", re.IGNORECASE)
"""What libraries say of a file that a confined thread may not write."""
_INSIDE = "mlops:inside"
"""Name of the position inside an epoch among the states of a checkpoint."""


class Channel(Protocol):
    """Carries a report to the driver; only rank 0 has one that leads anywhere."""

    def report(self, *, epoch: int, metrics: Mapping[str, float]) -> Answer:
        """Give the metrics of an epoch and wait for the answer."""
        ...

    def conclude(self, *, epoch: int, metrics: Mapping[str, float]) -> None:
        """Give the metrics of the last epoch, which no answer follows: there is nothing left to save."""
        ...

    def step(self, *, epoch: int, done: int) -> bool:
        """A step begins; whether the trial shall commit a checkpoint here and yield.

        Args:
            epoch: From 0.
            done: Steps over training rows that this epoch has done.
        """
        ...


class _Stopped(BaseException):
    """Unwinds the trainer; not an Exception, so that a trainer's own `except` does not catch it."""

    def __init__(self, outcome: str) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class Worker:
    """One worker of one attempt.

    Attributes:
        rank: 0 … world_size - 1.
        world_size: Workers of the group.
        device: Where tensors live; batches arrive there.
        seed: Of the trial, equal on all workers.
    """

    def __init__(
        self, task: AttemptTask, *, source: BatchSource, channel: Channel, rank: int, world_size: int, device: str
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(device)
        self.seed = task.seed
        self._task = task
        self._source = source
        self._channel = channel
        self._epoch = 0
        self._reported = -1
        self._state: Mapping[str, Any] = {}
        self._data_wait_ns = 0
        self._pass, self._resume = 0, (0, 0)
        """Iterations over the training rows in this epoch; where the epoch goes on: pass and step."""
        self._random: torch.Tensor | None = None
        self._writer = CheckpointWriter(Path(task.trial_folder), attempt=task.attempt)
        self._steps, self._done = 0, 0
        """Batches since the start; steps over training rows in this epoch."""
        self._shown = (0, 0, time.monotonic_ns())
        self._private: PrivateTraining | None = None
        self._stages: dict[int, BatchSource] = {}
        self._pool: NDArray[np.int64] | None = None
        if task.audit_pool:
            rows = source.count_rows("train")
            self._pool = choose_pool(rows, size=task.audit_pool, seed=task.audit_seed)
            self._members = draw_members(self._pool, trial_seed=task.seed)
            self._left_out = self._pool[~self._members]

    @property
    def folder(self) -> Path:
        """For files that the trainer writes; kept with the trial's checkpoints, and purged with them."""
        own = Path(self._task.trial_folder) / "own"
        own.mkdir(parents=True, exist_ok=True)
        return own

    def batches(self, split: str, *, batch_size: int, shuffle: bool = True) -> Iterator[Batch]:
        """This worker's part of every global batch of the current epoch.

        Args:
            split: `train` or `validation`; no trainer sees the test split.
            batch_size: Rows of the GLOBAL batch.
            shuffle: Without, rows come in the manifest's order.
        """
        if split == "test":
            raise TrainingError("a trainer asked for the test split", hint="it is the gate's; use validation")
        is_training = split == "train"
        step = self._begin_pass() if is_training else 0
        if step < 0:
            return  # this pass was done before the trial yielded
        iterator = self._source_of(split).batches(
            split,
            batch_size=batch_size,
            seed=self.seed,
            epoch=self._epoch,
            rank=self.rank,
            world_size=self.world_size,
            start_step=step,
            shuffle=shuffle,
            pin=self.device.type == "cuda",
        )
        while True:
            self._done = step if is_training else self._done
            is_asked = self._channel.step(epoch=self._epoch, done=self._done)
            if is_training and self._state and self._agree_to_yield(step, is_asked=is_asked):
                self._yield_inside(step)
            step += 1
            started = time.monotonic_ns()
            batch = next(iterator, None)
            self._data_wait_ns += time.monotonic_ns() - started
            if batch is None:
                return
            self._steps += 1
            if self._pool is not None and split == "train":
                batch = select_rows(batch, keep_mask(batch.rows, left_out=self._left_out))
            yield batch if self.device.type == "cpu" else move_batch(batch, self.device)

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model to call in the training step: data-parallel with more than one worker, bfloat16 where a GPU has it.

        The module passed in stays the one to evaluate and to save; both share their parameters.
        """
        model = model.to(self.device)
        wrapped = model
        if self.world_size > 1:
            wrapped = make_parallel(model, device=self.device, world_size=self.world_size)
        if self.device.type == "cuda" and torch.cuda.is_bf16_supported():
            wrapped = _Autocast(wrapped)
        return wrapped

    def privatize(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        noise: float,
        clip: float,
        batch_size: int,
        delta: float = 1e-5,
    ) -> PrivateTraining:
        """Train with differential privacy: use its `model`, `optimizer` and `batches(epoch)` in the training step.

        Args:
            model: The module that is evaluated and saved.
            optimizer: Over its parameters.
            noise: Of the gradients' sum, as a multiple of `clip`.
            clip: Largest norm of a row's gradient.
            batch_size: Expected rows of a step.
            delta: At which epsilon is stated.
        """
        if self.world_size > 1:
            raise TrainingError("a private trial has one worker", hint="set workers: 1")
        if len(self._task.slices) > 1:
            raise TrainingError("a private trial reads all rows at once", hint="set isolation.slices to 1")
        rows = self.batches("train", batch_size=MEASURE_BATCH_SIZE, shuffle=False)
        settings: dict[str, Any] = {"noise": noise, "clip": clip, "batch_size": batch_size, "delta": delta}
        self._private = make_private(model, optimizer, batches=rows, seed=self.seed, **settings)
        return self._private

    def pieces(self, batch: Batch, model: torch.nn.Module) -> Iterator[tuple[Batch, float]]:
        """This worker's part of a batch in pieces no larger than with all workers, each with its share of the mean.

        A trainer that accumulates `(loss * share).backward()` over them has the memory of the full group and the
        gradient of the global batch, however few workers an elastic group has; they meet at the last piece only.

        Args:
            batch: From `batches`.
            model: From `prepare`.
        """
        rows = len(batch.label)
        count = min(max(1, rows), -(-self._task.most_workers // self.world_size))
        for number, places in enumerate(torch.arange(rows).tensor_split(count)):
            held: torch.nn.Module = model.inner if isinstance(model, _Autocast) else model
            is_apart = number + 1 < count and isinstance(held, torch.nn.parallel.DistributedDataParallel)
            with held.no_sync() if is_apart else contextlib.nullcontext():  # type: ignore[operator]
                yield (batch if count == 1 else pick_rows(batch, places)), len(places) / max(1, rows)

    def epochs(self, state: Mapping[str, Any]) -> Iterator[int]:
        """The epochs still to do; restores `state` from the trial's newest checkpoint first.

        Args:
            state: Name to module, optimizer or scheduler (anything with `state_dict` and `load_state_dict`); the module
                whose weights are the result is named `model`.
        """
        if not isinstance(state.get("model"), torch.nn.Module):
            raise TrainingError("worker.epochs(state) needs the module under the key 'model'")
        self._state = state
        for first in range(self._restore(), self._task.epochs):
            self._epoch, self._pass, self._done = first, 0, 0
            seed_everything(derive_seed(self.seed, "epoch", first, self.rank))
            yield first
            if self._reported < first:
                raise TrainingError(
                    f"epoch {first} ended without worker.report(metrics)", hint="report once at the end of each epoch"
                )

    def report(self, metrics: Mapping[str, float]) -> None:
        """End an epoch: the machine records the metrics and may stop the trial here.

        Args:
            metrics: Finite numbers, equal on all workers (`sum` makes them so).
        """
        numbers = {name: float(value) for name, value in metrics.items()}
        self._require_sound(numbers)
        numbers |= self._measure_waiting()
        self._reported = self._epoch
        done = self._epoch + 1
        if done == self._task.epochs:  # the work is done: too late to prune, and better to finish than to yield
            if self.rank == 0:
                self._channel.conclude(epoch=self._epoch, metrics=numbers)
            return
        answer = self._channel.report(epoch=self._epoch, metrics=numbers) if self.rank == 0 else Answer.CONTINUE
        answer = self._agree(answer)
        if answer is Answer.PRUNE:
            raise _Stopped("pruned")
        is_yield = answer is Answer.YIELD
        if is_yield or done % self._task.checkpoint_epochs == 0:
            self._checkpoint(done)
        if self._task.slice_folders and done % self._task.stage_epochs == 0:
            self._checkpoint(done, folder=self._task.slice_folders[done // self._task.stage_epochs - 1])
        if is_yield:
            self._writer.finish()  # a yield is acknowledged when its checkpoint is committed
            raise _Stopped("yielded")

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all workers, on every worker; the tensor given is not changed."""
        total = tensor.detach().clone()
        if self.world_size > 1:
            torch.distributed.all_reduce(total)
        return total

    def measure(self, model: torch.nn.Module, split: str, *, sensitive: str | None = None) -> dict[str, float]:
        """Metrics to report: loss, accuracy and, for a sensitive column, gaps between its groups (see measuring.py)."""
        size = MEASURE_BATCH_SIZE - MEASURE_BATCH_SIZE % self.world_size  # each worker has an equal part
        batches = self.batches(split, batch_size=size, shuffle=False)
        return measure(model, batches, sensitive=sensitive, sum_over_workers=self.sum)

    @property
    def data_wait_us(self) -> int:
        """Time spent waiting for batches."""
        return self._data_wait_ns // 1_000

    def final_weights(self) -> Mapping[str, torch.Tensor]:
        """State of the module named `model`."""
        model = self._state.get("model")
        if model is None:
            raise TrainingError("the trainer never called worker.epochs(state)", hint="see docs/sweeps.md")
        if self._reported < self._task.epochs - 1:
            raise TrainingError("the trainer left worker.epochs before its last epoch")
        weights: Mapping[str, torch.Tensor] = model.state_dict()
        return weights

    def audit(self) -> None:
        """Keep what a private training spent, and what the final model says about the audit pool, seen and unseen."""
        if self._private is not None:
            keep_privacy(Path(self._task.trial_folder), self._private.spend(epochs=self._task.epochs))
        if self._pool is None:
            return
        model = copy.deepcopy(self._state["model"]).cpu().eval()
        batches = self._source.batches(
            "train", batch_size=MEASURE_BATCH_SIZE, seed=0, epoch=0, rank=0, world_size=1, shuffle=False
        )
        scores = score_pool(model, batches, pool=self._pool)
        save_audit(Path(self._task.trial_folder), pool=self._pool, members=self._members, scores=scores)

    def close(self) -> None:
        """Nothing of this attempt is still being written."""
        self._writer.close()

    def _source_of(self, split: str) -> BatchSource:
        """What the current epoch reads: for a member of an ensemble, the slices of its stage and those before."""
        if not self._task.slices or split != "train":
            return self._source
        stage = self._epoch // self._task.stage_epochs
        if stage not in self._stages:
            self._stages[stage] = self._source.of_groups(
                frozenset(group for groups in self._task.slices[: stage + 1] for group in groups)
            )
        return self._stages[stage]

    def _restore(self) -> int:
        folders = [self._task.trial_folder] if self._task.attempt > 0 else []
        every = [load_newest(Path(folder)) for folder in (*folders, *self._task.slice_folders)]
        found = [it for it in every if it is not None]
        if not found:
            return 0
        done, saved = max(found, key=lambda it: it[0])
        for name, item in self._state.items():
            item.load_state_dict(saved[name])
        inside = saved.get(_INSIDE)
        if inside is not None:
            self._resume, self._random = (int(inside["pass"]), int(inside["step"])), inside["random"]
        self._reported = done - 1
        return done

    def _checkpoint(self, done: int, *, folder: str = "") -> None:
        if self.rank == 0:
            state = {name: item.state_dict() for name, item in self._state.items()}
            if not folder:
                self._writer.begin(epoch=done, state=state)
                return
            writer = CheckpointWriter(Path(folder), attempt=self._task.attempt)
            writer.begin(epoch=done, state=state)
            writer.finish()  # of a slice: rare, and what a later retrain begins from
            writer.close()

    def _begin_pass(self) -> int:
        """Where this iteration over the training rows begins; -1 when it was done before the trial yielded."""
        number, (resumed, step) = self._pass, self._resume
        self._pass += 1
        if number < resumed:
            return -1
        self._resume = (0, 0)
        if self._random is not None:
            ranks = len(self._random)
            if self.rank < ranks:  # a group that has grown since then seeds its new workers by the epoch
                unpack_random(self._random[self.rank], self.device)
            self._random = None
        return step

    def _agree_to_yield(self, step: int, *, is_asked: bool) -> bool:
        if self.world_size == 1:
            return is_asked
        if step % YIELD_STEPS:
            return False
        asked = torch.tensor([int(is_asked)], device=self.device)
        torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        return bool(asked.item())

    def _yield_inside(self, step: int) -> None:
        """Commit a checkpoint in the middle of an epoch, generators and all, and stop."""
        packed = pack_random(self.device)
        every = [packed]
        if self.world_size > 1:
            mine = packed.to(self.device)
            every = [torch.empty_like(mine) for _ in range(self.world_size)]
            torch.distributed.all_gather(every, mine)
        if self.rank == 0:
            state = {name: item.state_dict() for name, item in self._state.items()}
            inside = {"pass": self._pass - 1, "step": step, "random": torch.stack([each.cpu() for each in every])}
            number = (self._pass - 1) * STEPS_PER_PASS + step
            self._writer.begin(epoch=self._epoch, step=number, state={**state, _INSIDE: inside})
            self._writer.finish()
        raise _Stopped("yielded")

    def _agree(self, answer: Answer) -> Answer:
        if self.world_size == 1:
            return answer
        shared = torch.tensor([int(answer)], device=self.device)
        torch.distributed.broadcast(shared, src=0)
        return Answer(int(shared.item()))

    def _measure_waiting(self) -> dict[str, float]:
        """How long a step waited for data since the last report, on the worker that waited longest."""
        wait_ns, steps, since_ns = self._shown
        self._shown = (self._data_wait_ns, self._steps, time.monotonic_ns())
        waited_ms, done = (self._data_wait_ns - wait_ns) / 1e6, max(1, self._steps - steps)
        found = torch.tensor(
            [waited_ms / done, waited_ms * 1e6 / max(1, self._shown[2] - since_ns)], device=self.device
        )
        if self.world_size > 1:
            torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
        names = (f"{SYSTEM_PREFIX}data_wait_ms_per_step", f"{SYSTEM_PREFIX}data_wait_share")
        return dict(zip(names, found.tolist(), strict=True))

    def _require_sound(self, metrics: Mapping[str, float]) -> None:
        bad = sorted(name for name, value in metrics.items() if not math.isfinite(value))
        if bad:
            values = ", ".join(f"{name} is {metrics[name]}" for name in bad)
            raise TrainingError(f"not a number in epoch {self._epoch}: {values}", hint="lower the learning rate")
        missing = sorted(set(self._task.required_metrics) - set(metrics))
        if missing:
            close = [name for one in missing for name in difflib.get_close_matches(one, sorted(metrics), n=1)]
            raise TrainingError(
                f"metrics that the sweep needs were not reported: {', '.join(missing)}; reported were "
                f"{', '.join(sorted(metrics)) or 'none'}" + (f"; did you mean {close[0]!r}?" if close else "")
            )


class _Autocast(torch.nn.Module):
    """Runs a module in bfloat16 on a GPU; results come back as float32."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The inner module's answer."""
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return self.inner(*args, **kwargs).float()


def run_attempt(
    task: AttemptTask,
    *,
    source: BatchSource,
    channel: Channel,
    rank: int,
    world_size: int,
    device: str,
    on_trained: Callable[[], None] = lambda: None,
) -> AttemptResult:
    """Run the trainer once; its exceptions become a `failed` or `lost` result with one sentence.

    Args:
        task: Which attempt.
        source: What it reads.
        channel: Carries its reports.
        rank: Of this worker.
        world_size: Workers of the group.
        device: Where tensors live.
        on_trained: Called when only the weights are still to be written: another attempt may begin meanwhile.
    """
    started = time.monotonic_ns()
    worker = Worker(task, source=source, channel=channel, rank=rank, world_size=world_size, device=device)
    outcome, reason, weights_file, sha256, has_lost_peer = "complete", "", "", "", False
    try:
        if rank == 0:
            fence_folder(Path(task.trial_folder), attempt=task.attempt)
        seed_everything(task.seed)
        load_trainer(Path(task.trainer_file)).train(worker, dict(task.params))
        weights = worker.final_weights()
        if rank == 0:
            require_unfenced(Path(task.trial_folder), attempt=task.attempt)
            worker.audit()
            on_trained()
            weights_file = str(Path(task.trial_folder) / "weights.safetensors")
            sha256 = save_weights(Path(weights_file), weights)
    except _Stopped as stop:
        outcome = stop.outcome
    except TrainingError as error:
        outcome, reason = "failed", error.message
    except EnvironmentFault as error:  # storage, not the trainer: the attempt is repeated
        outcome, reason = "lost", error.message
    except (Exception, SystemExit) as error:  # the trainer is user code: whatever it raises is its trial's reason
        has_lost_peer = is_peer_loss(error)
        outcome = "lost" if has_lost_peer else "failed"
        reason = describe_error(error, trainer=task.trainer_file)
    worker.close()
    busy_us = (time.monotonic_ns() - started) // 1_000
    usage = Usage(busy_us=busy_us, data_wait_us=worker.data_wait_us, peak_memory_bytes=_peak_memory_bytes())
    return AttemptResult(
        outcome,
        usage,
        weights_file=weights_file,
        weights_sha256=sha256,
        reason=reason,
        has_lost_peer=has_lost_peer,
    )


def is_peer_loss(error: BaseException | None) -> bool:
    """Whether a collective ended because another worker went away or did not answer, which is not the trainer's fault.

    torch raises its DistError for nccl; gloo's errors are plain RuntimeErrors that name the file of its transport.
    """
    while error is not None:
        if isinstance(error, torch.distributed.DistError):
            return True
        if isinstance(error, RuntimeError) and "gloo/transport/" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def describe_error(error: BaseException, *, trainer: str) -> str:
    """One line: where in the trainer, which error, what it said."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == trainer:
            line = trace.tb_lineno
        trace = trace.tb_next
    said = (str(error).strip().splitlines() or [""])[0]
    where = f"{Path(trainer).name}:{line}: " if line else ""
    hint = f"; {WRITES}" if _DENIED.search(said) else ""
    return f"{where}{type(error).__name__}: {said}"[:400] + hint


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # trainers use the global generator
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():  # without, torch.manual_seed would keep a stack trace of each call for good
        torch.cuda.manual_seed_all(seed)


def pick_rows(batch: Batch, places: torch.Tensor) -> Batch:
    """Some rows of a batch, by their places in it."""

    def picked(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[places.to(tensor.device)]

    return Batch(
        features={name: picked(column) for name, column in batch.features.items()},
        label=picked(batch.label),
        sensitive={name: picked(column) for name, column in batch.sensitive.items()},
        weight=None if batch.weight is None else picked(batch.weight),
        positions=picked(batch.positions),
        rows=picked(batch.rows),
    )


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""
    return batch.map_columns(lambda column: column.to(device, non_blocking=True))


def _peak_memory_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
