"""Data-parallel training of one model by several workers: gradients are averaged in one order, whenever a worker began.

DDP adds gradients in flat buffers: at first laid out by the order of the parameters, from its second step on by the
order in which their gradients came. Three workers and more add a number in the order that its place in a buffer gives
it, so a trial that was resumed would differ in the last bits from one that was not. A step of zeros before the first
real one lays out the buffers for good. Two workers need none: a + b is b + a.
Leaves to others: joining the process group (mlops/training/ray_worker), mixed precision (mlops/training/worker).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

_MANY = 3
"""Workers from which on the order of a sum depends on the place in the buffer."""


def make_parallel(model: torch.nn.Module, *, device: torch.device, world_size: int) -> DistributedDataParallel:
    """The model as all workers of the group call it in the training step.

    Args:
        model: On its device; not changed, but without gradients afterwards.
        device: Of this worker.
        world_size: Workers of the group, which have joined.
    """
    devices = [device.index or 0] if device.type == "cuda" else None
    takes_sparse = any(getattr(module, "sparse", False) for module in model.modules())  # those buffers are not flat
    if world_size < _MANY or takes_sparse:
        return DistributedDataParallel(model, device_ids=devices, forward_sync_buffers=False)
    entrance = _Entrance(model)
    parallel = DistributedDataParallel(entrance, device_ids=devices, forward_sync_buffers=False)
    entrance.is_rehearsal = True
    parallel().backward()
    entrance.is_rehearsal = False
    for parameter in model.parameters():
        parameter.grad = None
    return parallel


class _Entrance(torch.nn.Module):
    """The way to a model; in the rehearsal a zero that depends on each of its parameters, the last one first."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.is_rehearsal = inner, False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The inner module's answer, or the zero."""
        if not self.is_rehearsal:
            return self.inner(*args, **kwargs)
        trained = [parameter for parameter in self.inner.parameters() if parameter.requires_grad]
        return sum((parameter.sum() * 0.0).float() for parameter in trained)
