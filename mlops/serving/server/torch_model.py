"""A model that torch itself computes, in images that have the torch layer: weights, and the trainer's `model()`.

It answers like an onnxruntime session, so that nothing else of the server knows the difference. Imported only where a
version has `weights.safetensors` instead of `model.onnx`.
Leaves to others: when a model runs, and for whom (onnx_model.py).
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

FILES = ("weights.safetensors", "trainer.py", "model.json")
"""What a version's folder holds: tensors, the code that gives them meaning, and the parameters of that code."""


class TorchSession:
    """One module in evaluation mode, on the processor."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        torch.set_num_threads(threads)
        params = json.loads((folder / "model.json").read_text("utf-8"))["params"]
        self._module = runpy.run_path(str(folder / "trainer.py"))["model"](params)
        self._module.load_state_dict(load_file(folder / "weights.safetensors"), strict=True)
        self._module.eval()

    def get_providers(self) -> list[str]:
        """What computes."""
        return ["torch"]

    def run(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
        """The named outputs for a batch, as arrays."""
        with torch.inference_mode():  # per thread, and runs move between threads
            columns = {name: torch.tensor(values) for name, values in feed.items()}
            logits = self._module(columns).to(torch.float32)
            given = {"logits": logits, "probabilities": torch.softmax(logits, dim=-1)}
            return [given[name].numpy() for name in names]
