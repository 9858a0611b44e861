"""The state of all generators that a trainer may use, as one tensor: a checkpoint inside an epoch needs it.

Leaves to others: seeding at the start of a trial and of an epoch (mlops/training/worker).
"""

from __future__ import annotations

import random

import numpy as np
import torch

_KEYS = 624
"""Words of a Mersenne Twister."""


def pack_random(device: torch.device) -> torch.Tensor:
    """State of Python's, numpy's and torch's generators: int64 [L], L the same on all workers of a group."""
    version, words, gauss = random.getstate()
    assert version == 3
    _, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    halves = np.array([gauss or 0.0, cached], dtype=np.float64).view(np.int64)
    flags = [int(gauss is not None), int(has_gauss), int(place)]
    parts = [
        torch.tensor([*words, *flags], dtype=torch.int64),
        torch.from_numpy(halves.copy()),
        torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        torch.get_rng_state().to(torch.int64),
    ]
    if device.type == "cuda":
        parts.append(torch.cuda.get_rng_state(device).to(torch.int64))
    return torch.cat(parts)


def unpack_random(packed: torch.Tensor, device: torch.device) -> None:
    """Set the generators back to what `pack_random` found."""
    values = packed.cpu()
    words, rest = values[: _KEYS + 1], values[_KEYS + 1 :]
    has_python, has_numpy, place = (int(flag) for flag in rest[:3])
    gauss, cached = rest[3:5].numpy().view(np.float64)
    keys, rest = rest[5 : 5 + _KEYS], rest[5 + _KEYS :]
    random.setstate((3, tuple(int(word) for word in words), float(gauss) if has_python else None))
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), place, has_numpy, float(cached)))  # trainers use it
    length = len(torch.get_rng_state())
    torch.set_rng_state(rest[:length].to(torch.uint8))
    if device.type == "cuda":
        torch.cuda.set_rng_state(rest[length:].to(torch.uint8), device)
