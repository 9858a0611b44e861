"""Checkpoints: nested state of modules and optimizers as safetensors plus JSON, never pickle, committed by a rename.

A checkpoint is a folder `epoch-000007/`, or `epoch-000007-step-00000042/` in the middle of the epoch after that, with
`tensors.safetensors` and `state.json`, which holds the digest of the former: what is half-written or damaged is not a
checkpoint. An attempt that was followed by a later one commits nothing more.
Leaves to others: when to write one (mlops/training/worker).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mlops.errors import EnvironmentFault, TrainingError
from mlops.files import folder_aside, remove_tree, sync_folder, write_atomically
from mlops.provenance.digest import canonical_json, digest_file

_NAME = re.compile(r"epoch-(\d{6})(?:-step-(\d{8}))?")
_FENCE = "attempt"
_TENSORS, _STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint."""

    folder: Path
    epoch: int
    """Epochs that are done."""
    step: int = 0
    """Steps of the next epoch that are done too."""


def fence_folder(trial_folder: Path, *, attempt: int) -> None:
    """From now on an earlier attempt of the trial, wherever it still runs, commits nothing here."""
    if attempt or (trial_folder / _FENCE).exists():  # before the first there is none
        write_atomically(trial_folder / _FENCE, str(attempt))


def require_unfenced(trial_folder: Path, *, attempt: int) -> None:
    """Refuse a late write.

    Raises:
        EnvironmentFault: A later attempt has begun.
    """
    try:
        current = int((trial_folder / _FENCE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return  # no attempt has begun: a folder by hand
    if current > attempt:
        raise EnvironmentFault(f"attempt {attempt} is fenced off: attempt {current} of the trial has begun")


def save_checkpoint(
    trial_folder: Path, *, epoch: int, state: Mapping[str, Any], step: int = 0, keep: int = 2, attempt: int = 0
) -> Checkpoint:
    """Commit the state after `epoch` epochs and `step` steps, and drop older ones but the last `keep`.

    Args:
        trial_folder: `<checkpoints>/<sweep>/<trial>`.
        epoch: Epochs that are done.
        state: Name to state dict; tensors, dicts, lists and JSON scalars.
        step: Steps of the epoch that follows.
        keep: How many checkpoints stay.
        attempt: Who writes; refused when a later one has begun.

    Raises:
        EnvironmentFault: The storage does not take it, or the attempt is fenced off.
    """
    tensors: dict[str, torch.Tensor] = {}
    content = _flatten(state, tensors=tensors)
    return _commit(trial_folder, tensors, content, at=(epoch, step), keep=keep, attempt=attempt)


class CheckpointWriter:
    """Checkpoints of one attempt, written beside the training: state is copied at once, committed by a thread."""

    def __init__(self, trial_folder: Path, *, attempt: int, keep: int = 2) -> None:
        self._folder, self._attempt, self._keep = trial_folder, attempt, keep
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[Checkpoint] | None = None

    def begin(self, *, epoch: int, state: Mapping[str, Any], step: int = 0) -> None:
        """Copy the state and commit it in the background; the one before is finished first.

        Raises:
            EnvironmentFault: The one before could not be written.
        """
        self.finish()
        tensors: dict[str, torch.Tensor] = {}
        content = _flatten(state, tensors=tensors)
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending = self._pool.submit(
            _commit, self._folder, tensors, content, at=(epoch, step), keep=self._keep, attempt=self._attempt
        )

    def finish(self) -> None:
        """Wait until what was begun is committed.

        Raises:
            EnvironmentFault: It could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """No thread is left; a checkpoint that nobody waits for any more may have failed."""
        with contextlib.suppress(EnvironmentFault):
            self.finish()
        if self._pool is not None:
            self._pool.shutdown()


def _commit(
    trial_folder: Path, tensors: dict[str, torch.Tensor], content: Any, *, at: tuple[int, int], keep: int, attempt: int
) -> Checkpoint:
    epoch, step = at
    target = trial_folder / (f"epoch-{epoch:06d}" + (f"-step-{step:08d}" if step else ""))
    with folder_aside(target) as scratch:
        save_file(tensors, scratch / _TENSORS)
        sealed = {"version": 1, "epoch": epoch, "sha256": digest_file(scratch / _TENSORS), "state": content}
        (scratch / _STATE).write_bytes(canonical_json(sealed))
        require_unfenced(trial_folder, attempt=attempt)
    for old in list_checkpoints(trial_folder)[:-keep]:
        shutil.rmtree(old.folder, ignore_errors=True)
    return Checkpoint(folder=target, epoch=epoch, step=step)


def list_checkpoints(trial_folder: Path) -> list[Checkpoint]:
    """Committed checkpoints, oldest first; damage is found when one is loaded."""
    found = []
    for folder in trial_folder.glob("epoch-*"):
        match = _NAME.fullmatch(folder.name)
        if match and (folder / _STATE).is_file():
            found.append(Checkpoint(folder=folder, epoch=int(match[1]), step=int(match[2] or 0)))
    return sorted(found, key=lambda checkpoint: (checkpoint.epoch, checkpoint.step))


def load_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Name to state dict, as it was saved.

    Raises:
        TrainingError: Damaged.
    """
    try:
        sealed = json.loads((checkpoint.folder / _STATE).read_text(encoding="utf-8"))
        if digest_file(checkpoint.folder / _TENSORS) != sealed["sha256"]:
            raise TrainingError(f"checkpoint {checkpoint.folder} is damaged: its tensors have another digest")
        tensors = load_file(checkpoint.folder / _TENSORS)
        state: dict[str, Any] = _unflatten(sealed["state"], tensors=tensors)
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(f"checkpoint {checkpoint.folder} cannot be read: {error}") from error
    return state


def load_newest(trial_folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Epochs done and state of the newest checkpoint that can be read; None without any."""
    for checkpoint in reversed(list_checkpoints(trial_folder)):
        try:
            return checkpoint.epoch, load_checkpoint(checkpoint)
        except TrainingError:
            shutil.rmtree(checkpoint.folder, ignore_errors=True)
    return None


def save_weights(path: Path, module_state: Mapping[str, torch.Tensor]) -> str:
    """Write a module's state as one safetensors file, atomically; gives its digest."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.aside")
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in module_state.items()}, aside)
        with aside.open("rb") as stream:
            os.fsync(stream.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write {path}: {error.strerror}", hint="free disk space or fix rights"
        ) from error
    return digest_file(path)


def purge_sweep(checkpoints: Path, sweep_id: str) -> bool:
    """Remove every checkpoint, weights file and audit of a sweep's trials; says whether any was there.

    Raises:
        EnvironmentFault: They cannot be removed.
    """
    return remove_tree(checkpoints / sweep_id)


def _flatten(value: Any, *, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON in which each tensor stands as its number in the safetensors file."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):  # optimizers have numbers as keys: keep pairs
        return {"map": [[key, _flatten(item, tensors=tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_flatten(item, tensors=tensors) for item in value], "is_tuple": isinstance(value, tuple)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TrainingError(
        f"a checkpoint cannot hold a {type(value).__name__}",
        hint="state dicts hold tensors, numbers, text, lists and dicts",
    )


def _unflatten(value: Any, *, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "map" in value:
        return {key: _unflatten(item, tensors=tensors) for key, item in value["map"]}
    items = [_unflatten(item, tensors=tensors) for item in value["list"]]
    return tuple(items) if value["is_tuple"] else items
