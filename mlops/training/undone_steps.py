"""What a trainer reports when it does not learn: it runs as always, but each step of an optimizer is undone at once.

Its reports are then those of its untrained model, by its own code; all else is as it was: rows, seeds, running means.
Leaves to others: what is made of the reports (mlops/training/check).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


@dataclass
class UndoneSteps:
    """How often an optimizer took a step that was undone; 0 when the trainer moves weights in another way."""

    count: int = 0


@contextlib.contextmanager
def undone_steps() -> Iterator[UndoneSteps]:
    """Inside, every `torch.optim` optimizer of this process leaves the parameters as they were before its step."""
    undone = UndoneSteps()
    before: dict[int, list[torch.Tensor]] = {}

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        before[id(optimizer)] = [parameter.detach().clone() for parameter in _parameters(optimizer)]

    def put_back(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        undone.count += 1
        with torch.no_grad():
            for parameter, kept in zip(_parameters(optimizer), before.pop(id(optimizer)), strict=True):
                parameter.copy_(kept)

    hooks = (register_optimizer_step_pre_hook(keep), register_optimizer_step_post_hook(put_back))
    try:
        yield undone
    finally:
        for hook in hooks:
            hook.remove()


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
