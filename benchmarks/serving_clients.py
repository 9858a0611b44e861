"""kserve's and tritonclient's own clients against our server, in kserve's environment; started by bench_serving.py.

Run as `python serving_clients.py HOST:PORT MODEL REQUEST (its JSON)`. Prints one line per client and way that was
answered as expected; ends with a traceback at the first that was not.
"""

import asyncio
import json
import sys

import numpy as np
import tritonclient.http as triton
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

NUMPY = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "BYTES": np.object_}


def main() -> None:
    address, model, tensors = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])["inputs"]
    arrays = {item["name"]: as_array(item) for item in tensors}
    answers = dict(asyncio.run(ask_with_kserve(f"http://{address}", model, tensors, arrays)))
    answers |= dict(ask_with_triton(address, model, tensors, arrays))
    first = next(iter(answers.values()))
    for way, answer in answers.items():
        if not np.allclose(answer, first, atol=1e-6):
            sys.exit(f"{way} got {answer}, another one {first}")
        print(way)


def as_array(item: dict) -> np.ndarray:
    data = [text.encode() for text in item["data"]] if item["datatype"] == "BYTES" else item["data"]
    return np.array(data, dtype=NUMPY[item["datatype"]]).reshape(item["shape"])


def ask_with_triton(address, model, tensors, arrays):
    client = triton.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model)
    assert client.get_server_metadata()["extensions"]
    assert {item["name"] for item in client.get_model_metadata(model)["inputs"]} == set(arrays)
    for is_binary in (False, True):
        inputs = []
        for item in tensors:
            tensor = triton.InferInput(item["name"], item["shape"], item["datatype"])
            tensor.set_data_from_numpy(arrays[item["name"]], binary_data=is_binary)
            inputs.append(tensor)
        outputs = [
            triton.InferRequestedOutput("probabilities", binary_data=is_binary),
            triton.InferRequestedOutput("label", binary_data=is_binary),
        ]
        answer = client.infer(model, inputs, outputs=outputs, request_id="one")
        assert answer.get_response()["id"] == "one"
        assert answer.as_numpy("label").shape == (tensors[0]["shape"][0],)
        yield f"tritonclient, {'binary' if is_binary else 'JSON'}", answer.as_numpy("probabilities").ravel()
    try:
        client.infer(model, inputs[1:])
    except triton.InferenceServerException as error:
        assert "400" in str(error.status()), error
    else:
        sys.exit("tritonclient: a missing input was accepted")


async def ask_with_kserve(url, model, tensors, arrays):
    found = []
    client = InferenceRESTClient(config=RESTConfig(protocol="v2"))
    assert await client.is_server_live(url) and await client.is_server_ready(url)
    assert await client.is_model_ready(url, model)
    for is_binary in (False, True):
        inputs = []
        for item in tensors:
            tensor = InferInput(item["name"], item["shape"], item["datatype"])
            tensor.set_data_from_numpy(arrays[item["name"]], binary_data=is_binary)
            inputs.append(tensor)
        answer = await client.infer(url, InferRequest(model_name=model, infer_inputs=inputs), model_name=model)
        by_name = {output.name: output for output in answer.outputs}
        found.append((f"kserve, {'binary' if is_binary else 'JSON'}", by_name["probabilities"].as_numpy().ravel()))
    return found


if __name__ == "__main__":
    main()
