"""The torch module of a candidate: the trainer's own, or an ensemble of its members as one module.

An ensemble answers with the mean of its members' probabilities, so its logits are the logarithm of that mean. Its
tensors are named `members.<number>.<name>`. Leaves to others: training the members (mlops/training/ensemble).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mlops.errors import TrainingError
from mlops.training.trainer import load_trainer


class JoinedModule(torch.nn.Module):
    """Members of an ensemble; columns to logits [B, C]."""

    def __init__(self, members: list[torch.nn.Module]) -> None:
        super().__init__()
        self.members = torch.nn.ModuleList(members)

    def forward(self, columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logarithm of the mean probability."""
        answers = torch.stack([member(columns).float().log_softmax(1) for member in self.members])
        return answers.logsumexp(0) - math.log(len(self.members))


def load_module(trainer_file: Path, weights_file: Path, *, params: Mapping[str, Any], members: int) -> torch.nn.Module:
    """The module with its weights, in evaluation mode, on the CPU. Runs the trainer: user code, in this process.

    Args:
        trainer_file: Has `model(params)`.
        weights_file: Safetensors.
        params: With the reserved ones.
        members: Of an ensemble; 0 is none.

    Raises:
        TrainingError: The trainer fails, or the weights do not fit it.
    """
    trainer = load_trainer(trainer_file)
    module: torch.nn.Module
    if members:
        module = JoinedModule([trainer.model(dict(params)) for _ in range(members)])
    else:
        module = trainer.model(dict(params))
    try:
        module.load_state_dict(load_file(weights_file), strict=True)
    except (RuntimeError, OSError) as error:
        raise TrainingError(f"{weights_file} does not fit {trainer_file.name}: {error}") from error
    return module.eval()
