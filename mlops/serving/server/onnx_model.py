"""Running a model: one session, and requests that wait at the same time share one run.

A run that takes short is done on the event loop itself; a long one in a thread, while the next requests gather.
Leaves to others: checking requests (contract.py, inference.py, scoring.py).
"""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .contract import Column, Contract, load_contract
from .settings import Settings

LABEL = "label"
"""Our own output beside the model's: the name of the most probable class."""
INLINE_SECONDS = 0.001
"""A run estimated to be longer goes to a thread, so that health checks are answered meanwhile."""
PROBABILITIES = "probabilities"
_ONNX = "model.onnx"
_PLATFORMS = {_ONNX: "onnx_onnxv1", "weights.safetensors": "pytorch_safetensors"}
"""What a version is served from (an exported model, or where there is none the module's weights), and the protocol's
name for it."""
_RISE = 1.05
_LEAST_SECONDS = 1e-8
_EXPIRY_SECONDS = 0.25

Feed = dict[str, Any]
"""Per input its checked values, flat: a list, or an array that came in binary."""


class NotFiniteError(Exception):
    """The model's answer holds NaN or infinity: the input is beyond what it can compute."""


@dataclass(frozen=True)
class Answer:
    """What the model said about one request's rows."""

    rows: int
    arrays: dict[str, np.ndarray[Any, Any]]
    classes: tuple[str, ...]

    def output(self, name: str) -> np.ndarray[Any, Any]:
        """One output, rows first."""
        return self.arrays[name]

    def labels(self) -> list[str]:
        """Per row the name of the most probable class."""
        return [self.classes[index] for index in self.arrays[PROBABILITIES].argmax(axis=1).tolist()]


@dataclass
class _Waiting:
    feed: Feed
    rows: int
    future: asyncio.Future[Answer]
    since: float


class OnnxModel:
    """One version of one product; also of those that torch itself computes."""

    def __init__(self, folder: Path, *, settings: Settings) -> None:
        self.contract: Contract = load_contract(folder / "contract.json")
        self.name = self.contract.product
        self.version = folder.name
        evidence = json.loads((folder / "evidence.json").read_text("utf-8"))
        self.evidence: dict[str, str] = {str(name): str(digest) for name, digest in evidence.items()}
        self._golden = json.loads((folder / "golden.json").read_text("utf-8"))["requests"]
        self.platform = next(platform for name, platform in _PLATFORMS.items() if (folder / name).is_file())
        self._session = _open_session(folder, threads=settings.threads)
        self._names = [output.name for output in self.contract.outputs]
        self._max_batch_rows = settings.max_batch_rows
        self._batching = settings.batching
        self._timeout_seconds = settings.request_timeout_seconds
        self._running: list[_Waiting] = []
        self._waiting: list[_Waiting] = []
        self._is_scheduled = False
        self._seconds_per_run = 1.0
        self._seconds_per_row = 1.0
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"model-{self.name}")
        self.runs = 0
        self.rows = 0

    @property
    def providers(self) -> list[str]:
        """What computes: `CUDAExecutionProvider` first where a GPU is in use."""
        return list(self._session.get_providers())

    @cached_property
    def digest(self) -> str:
        """Digest of the candidate this version was made from."""
        return self.evidence.get("candidate", "")

    def warm_up(self) -> None:
        """Answer every golden request, and learn how long a run takes."""
        from .inference import parse_inference  # imports this module

        for tensors in self._golden:
            body = json.dumps(tensors).encode()
            request = parse_inference(body, json_length=None, contract=self.contract, max_rows=1 << 20)
            started = time.perf_counter()
            self._run([_Waiting(request.feed, request.rows, _NO_FUTURE, 0.0)])
            self._learn(request.rows, time.perf_counter() - started)

    async def predict(self, feed: Feed, rows: int) -> Answer:
        """The model's answer; waits for the others that are here by now.

        Raises:
            NotFiniteError: The answer is not finite.
            TimeoutError: It took too long.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append(_Waiting(feed, rows, future, loop.time()))
        if not self._is_scheduled:
            self._is_scheduled = True
            loop.call_soon(self._flush)
        return await future

    def close(self) -> None:
        """Let the thread go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _flush(self) -> None:
        """Run what waits, as much as one run may hold."""
        batch, rows = self._take_batch()
        if not batch:
            self._is_scheduled = False
            return
        loop = asyncio.get_running_loop()
        if self._seconds_per_run + rows * self._seconds_per_row <= INLINE_SECONDS:
            started = time.perf_counter()
            self._finish(batch, *self._attempt(batch))
            self._learn(rows, time.perf_counter() - started)
            if self._waiting:
                loop.call_soon(self._flush)
            else:
                self._is_scheduled = False
            return
        started = time.perf_counter()
        self._running = batch
        loop.call_later(_EXPIRY_SECONDS, self._expire)
        running = loop.run_in_executor(self._threads, self._attempt, batch)

        def done(finished: asyncio.Future[tuple[list[Answer], BaseException | None]]) -> None:
            self._running = []
            self._learn(rows, time.perf_counter() - started)
            self._finish(batch, *finished.result())
            self._flush()

        running.add_done_callback(done)

    def _expire(self) -> None:
        """While a thread runs the model: tell callers that have waited too long."""
        if not self._running:
            return
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._timeout_seconds
        for item in (*self._running, *self._waiting):
            if item.since < oldest and not item.future.done():
                item.future.set_exception(TimeoutError())
        loop.call_later(_EXPIRY_SECONDS, self._expire)

    def _take_batch(self) -> tuple[list[_Waiting], int]:
        waiting = [item for item in self._waiting if not item.future.done()]  # callers that left are skipped
        count, rows = 0, 0
        for item in waiting:
            if count and (not self._batching or rows + item.rows > self._max_batch_rows):
                break
            count, rows = count + 1, rows + item.rows
        self._waiting = waiting[count:]
        return waiting[:count], rows

    def _attempt(self, batch: list[_Waiting]) -> tuple[list[Answer], BaseException | None]:
        try:
            return self._run(batch), None
        except Exception as error:
            return [], error

    def _finish(self, batch: list[_Waiting], answers: list[Answer], error: BaseException | None) -> None:
        if error is not None:
            if len(batch) > 1:  # one of them is to blame; the others shall not suffer
                for item in batch:
                    self._finish([item], *self._attempt([item]))
                return
            if not batch[0].future.done():
                batch[0].future.set_exception(error)
            return
        for item, answer in zip(batch, answers, strict=True):
            if not item.future.done():
                item.future.set_result(answer)

    def _run(self, batch: list[_Waiting]) -> list[Answer]:
        rows = sum(item.rows for item in batch)
        feed = {column.name: _join(batch, column, rows) for column in self.contract.inputs}
        arrays = self._session.run(self._names, feed)
        for array in arrays:
            if not np.isfinite(array).all():
                raise NotFiniteError
        self.runs += 1
        self.rows += rows
        classes = self.contract.classes
        if len(batch) == 1:
            return [Answer(rows, dict(zip(self._names, arrays, strict=True)), classes)]
        answers, at = [], 0
        for item in batch:
            part = {name: array[at : at + item.rows] for name, array in zip(self._names, arrays, strict=True)}
            answers.append(Answer(item.rows, part, classes))
            at += item.rows
        return answers

    def _learn(self, rows: int, seconds: float) -> None:
        """Cost of a run, split into a fixed part and one per row.

        Down at once, up by a twentieth per run: a run that was merely interrupted by another process says little.
        """
        if rows == 1:
            self._seconds_per_run = min(seconds, self._seconds_per_run * _RISE)
        else:
            per_row = max(0.0, seconds - self._seconds_per_run) / rows
            self._seconds_per_row = min(per_row, max(self._seconds_per_row, _LEAST_SECONDS) * _RISE)


def load_models(settings: Settings) -> list[OnnxModel]:
    """Every version below the folder of models, `<product>/<version>/`.

    Raises:
        FileNotFoundError: There is none.
    """
    found = (path.parent for name in _PLATFORMS for path in Path(settings.models).glob(f"*/*/{name}"))
    folders = sorted(set(found))
    if not folders:
        raise FileNotFoundError(f"{settings.models} holds no <product>/<version>/{_ONNX}")
    return [OnnxModel(folder, settings=settings) for folder in folders]


def _open_session(folder: Path, *, threads: int) -> Any:
    path = folder / _ONNX
    if not path.is_file():
        from .torch_model import TorchSession  # only an image with `runtime: torch` has torch

        return TorchSession(folder, threads=threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = True
    return onnxruntime.InferenceSession(str(path), options, providers=_providers())


def _providers() -> list[Any]:
    """The GPU first where this onnxruntime is made for it; without a GPU onnxruntime itself falls back."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return ["CPUExecutionProvider"]
    onnxruntime.preload_dlls()
    # TF32 would round differently than the judged model.
    return [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]


def _join(batch: list[_Waiting], column: Column, rows: int) -> np.ndarray[Any, Any]:
    name = column.name
    if len(batch) == 1:
        values = batch[0].feed[name]
    elif all(type(item.feed[name]) is list for item in batch):
        values = list(chain.from_iterable(item.feed[name] for item in batch))
    else:
        values = np.concatenate([np.asarray(item.feed[name], dtype=column.dtype).ravel() for item in batch])
    array = np.asarray(values, dtype=column.dtype)
    return array.reshape(rows, *column.shape) if column.shape else array


_NO_FUTURE: Any = None
