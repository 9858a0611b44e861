"""Checkpoints: nested state of modules and optimizers as safetensors plus JSON, never pickle, committed by a rename.

A checkpoint is a folder `epoch-000007/` with `tensors.safetensors` and `state.json`, which holds the digest of the
former: what is half-written or damaged is not a checkpoint.
Leaves to others: when to write one (mlops/training/worker).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mlops.errors import TrainingError
from mlops.files import folder_aside, remove_tree, sync_folder
from mlops.provenance.digest import canonical_json, digest_file

_NAME = re.compile(r"epoch-(\d{6})")
_TENSORS, _STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint."""

    folder: Path
    epoch: int
    """Epochs that are done."""


def save_checkpoint(trial_folder: Path, *, epoch: int, state: Mapping[str, Any], keep: int = 2) -> Checkpoint:
    """Commit the state after `epoch` epochs, and drop older ones but the last `keep`.

    Args:
        trial_folder: `<checkpoints>/<sweep>/<trial>`.
        epoch: Epochs that are done.
        state: Name to state dict; tensors, dicts, lists and JSON scalars.
        keep: How many checkpoints stay.
    """
    tensors: dict[str, torch.Tensor] = {}
    content = _flatten(state, tensors=tensors)
    target = trial_folder / f"epoch-{epoch:06d}"
    with folder_aside(target) as scratch:
        save_file(tensors, scratch / _TENSORS)
        sealed = {"version": 1, "epoch": epoch, "sha256": digest_file(scratch / _TENSORS), "state": content}
        (scratch / _STATE).write_bytes(canonical_json(sealed))
    for old in list_checkpoints(trial_folder)[:-keep]:
        shutil.rmtree(old.folder, ignore_errors=True)
    return Checkpoint(folder=target, epoch=epoch)


def list_checkpoints(trial_folder: Path) -> list[Checkpoint]:
    """Committed checkpoints, oldest first; damage is found when one is loaded."""
    found = []
    for folder in trial_folder.glob("epoch-*"):
        match = _NAME.fullmatch(folder.name)
        if match and (folder / _STATE).is_file():
            found.append(Checkpoint(folder=folder, epoch=int(match[1])))
    return sorted(found, key=lambda checkpoint: checkpoint.epoch)


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
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.aside")
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in module_state.items()}, aside)
    with aside.open("rb") as stream:
        os.fsync(stream.fileno())
    aside.replace(path)
    sync_folder(path.parent)
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
