"""The same ONNX model behind MLServer and kserve's own server: started by bench_serving.py in their own environments.

Run as `python serving_peers.py kserve FOLDER PORT`, or loaded by MLServer as `serving_peers.OnnxModel`. Both do what
our server does for a request: names and kinds of columns are checked, categories become codes, labels are added.
"""

import json
import os
import sys
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime


class Judge:
    def __init__(self, folder: str) -> None:
        self.contract = json.loads((Path(folder) / "contract.json").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(Path(folder) / "model.onnx"), options)
        self.columns = {column["name"]: column for column in self.contract["inputs"]}
        self.codes = {
            name: {text: code for code, text in enumerate(column["categories"])}
            for name, column in self.columns.items()
            if column["categories"]
        }

    def answer(self, named: dict):
        if named.keys() != self.columns.keys():
            raise ValueError("inputs do not match")
        feed = {}
        for name, values in named.items():
            column = self.columns[name]
            if name in self.codes:
                values = [self.codes[name][text if isinstance(text, str) else text.decode()] for text in values]
            array = np.asarray(values, dtype=column["dtype"]).reshape(-1, *column["shape"])
            if column["minimum"] is not None and not (array >= column["minimum"]).all():
                raise ValueError(f"{name} is out of range")
            if column["maximum"] is not None and not (array <= column["maximum"]).all():
                raise ValueError(f"{name} is out of range")
            feed[name] = array
        logits, probabilities = self.session.run(["logits", "probabilities"], feed)
        labels = [self.contract["classes"][index] for index in probabilities.argmax(axis=1)]
        return logits, probabilities, labels


if __name__ == "__main__" and sys.argv[1] == "kserve":
    from kserve import InferOutput, InferResponse, Model, ModelServer

    class KserveModel(Model):
        def __init__(self) -> None:
            super().__init__("income")
            self.judge = Judge(sys.argv[2])
            self.ready = True

        def predict(self, payload, headers=None):
            named = {tensor.name: tensor.data for tensor in payload.inputs}
            logits, probabilities, labels = self.judge.answer(named)
            outputs = [
                InferOutput("logits", list(logits.shape), "FP32", data=logits.ravel().tolist()),
                InferOutput("probabilities", list(probabilities.shape), "FP32", data=probabilities.ravel().tolist()),
                InferOutput("label", [len(labels)], "BYTES", data=labels),
            ]
            return InferResponse(response_id=payload.id, model_name="income", infer_outputs=outputs)

    ModelServer(http_port=int(sys.argv[3]), enable_grpc=False, workers=1, access_log_format=None).start([KserveModel()])
elif __name__ != "__main__":
    from mlserver import MLModel
    from mlserver.types import InferenceResponse, ResponseOutput

    class OnnxModel(MLModel):
        async def load(self) -> bool:
            self.judge = Judge(self.settings.parameters.uri)
            return True

        async def predict(self, payload):
            named = {tensor.name: list(tensor.data) for tensor in payload.inputs}
            logits, probabilities, labels = self.judge.answer(named)
            outputs = [
                ResponseOutput(name="logits", shape=list(logits.shape), datatype="FP32", data=logits.ravel().tolist()),
                ResponseOutput(
                    name="probabilities",
                    shape=list(probabilities.shape),
                    datatype="FP32",
                    data=probabilities.ravel().tolist(),
                ),
                ResponseOutput(name="label", shape=[len(labels)], datatype="BYTES", data=labels),
            ]
            return InferenceResponse(id=payload.id, model_name=self.name, outputs=outputs)
