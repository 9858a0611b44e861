"""`load.py`, five lines beside a fetched model that load it without `mlops`.

Leaves to others: fetching the files (mlops/registry), the candidate's own loading (mlops/training/candidate).
"""

from __future__ import annotations

FILE = "load.py"
_SINGLE = """\
import json, pathlib, runpy, safetensors.torch as st; at = pathlib.Path(__file__).with_name  # python -i load.py
params, contract = json.loads(at("params.json").read_text())["params"], json.loads(at("contract.json").read_text())
given = {"columns": {it["name"]: len(it["categories"] or ()) for it in contract["inputs"]}}
model = runpy.run_path(str(at("trainer.py")))["model"]({**params, **given, "classes": len(contract["classes"])})
model.load_state_dict(st.load_file(at("weights.safetensors"))); model.eval()
"""
_ENSEMBLE = """\
import os, pathlib; os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # python -i load.py
import onnxruntime  # an ensemble of isolated members, joined in one ONNX file
session = onnxruntime.InferenceSession(pathlib.Path(__file__).with_name("model.onnx"))
def model(columns):  # name to numpy array [B]; gives logits [B, C]
    return session.run(["logits"], columns)[0]
"""


def render_loader(*, members: int) -> str:
    """The text of `load.py`; it defines `model`.

    Args:
        members: Of an ensemble; 0 is a single torch module.
    """
    return _ENSEMBLE if members else _SINGLE
