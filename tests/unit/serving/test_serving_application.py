"""What the server answers: the protocol, headers, versions, limits."""

import json
import re
import struct

import numpy as np
import pytest

from mlops.serving.golden import answer_golden, make_golden_requests
from mlops.serving.malformed import make_malformed_requests
from mlops.serving.testing import tiny_contract


def _outputs(answer):
    return {output["name"]: output for output in answer.json()["outputs"]}


def test_golden_requests_are_answered_as_the_model_itself_does(server, model_root):
    contract = tiny_contract()
    requests = make_golden_requests(contract)
    expected = answer_golden(model_root / "income/1", requests, contract=contract)
    for request, answers in zip(requests, expected, strict=True):
        answer = server.infer(request.to_inference_request(contract))
        assert answer.status == 200
        found = _outputs(answer)
        assert answer.json()["id"] == request.name
        for name, rows in answers.items():
            assert found[name]["shape"] == [request.rows, 2]
            assert np.allclose(np.reshape(found[name]["data"], (-1, 2)), rows, atol=1e-6)
        winners = np.argmax(answers["probabilities"], axis=1)
        assert found["label"]["data"] == [contract.classes[index] for index in winners]


def test_names_and_codes_of_categories_mean_the_same(server, good):
    by_name = server.infer(good)
    good["inputs"][3] |= {"datatype": "INT64", "data": [1]}
    good["inputs"][4] |= {"datatype": "BYTES", "data": ["Male"]}
    assert _outputs(server.infer(good))["logits"] == _outputs(by_name)["logits"]


def test_requests_that_arrive_together_share_a_run_and_keep_their_answers(make_server):
    server, contract = make_server(), tiny_contract()
    requests = [request for seed in range(5) for request in make_golden_requests(contract, seed=seed)]
    alone = [server.infer(request.to_inference_request(contract)).json() for request in requests]
    before = server.models[0].runs
    calls = [
        ("POST", "/v2/models/income/infer", json.dumps(request.to_inference_request(contract)).encode(), ())
        for request in requests
    ]
    together = [answer.json() for answer in server.ask_together(calls)]
    assert server.models[0].runs - before == 1
    for left, right in zip(alone, together, strict=True):
        assert left["id"] == right["id"]
        for mine, theirs in zip(left["outputs"][:2], right["outputs"][:2], strict=True):
            assert np.allclose(mine["data"], theirs["data"], atol=1e-6)


def test_without_batching_every_request_runs_alone(make_server, good):
    server = make_server(batching=False)
    before = server.models[0].runs
    server.ask_together([("POST", "/v2/models/income/infer", json.dumps(good).encode(), ())] * 3)
    assert server.models[0].runs - before == 3


def test_binary_tensors_in_and_out(server, good):
    expected = _outputs(server.infer(good))
    values = {
        "age": ("FP32", "<f", 39.0),
        "hours": ("FP32", "<f", 40.5),
        "gain": ("FP64", "<d", -2174.0),
        "sex": ("INT64", "<q", 1),
    }
    inputs, blobs = [], []
    for tensor in good["inputs"]:
        name = tensor["name"]
        if name in values:
            blob = struct.pack(values[name][1], values[name][2])
        elif name == "workclass":
            blob = struct.pack("<I", 7) + b"Private"
        else:
            blob = np.asarray(tensor["data"], dtype="<f4").tobytes()
        inputs.append({**tensor, "parameters": {"binary_data_size": len(blob)}})
        inputs[-1].pop("data")
        blobs.append(blob)
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    answer = server.infer(head + b"".join(blobs), headers=(("inference-header-content-length", str(len(head))),))
    assert answer.status == 200, answer.body
    length = int(answer.headers["inference-header-content-length"])
    outputs, at = json.loads(answer.body[:length])["outputs"], length
    found = {}
    for output in outputs:
        size = output["parameters"]["binary_data_size"]
        found[output["name"]] = answer.body[at : at + size]
        at += size
    assert at == len(answer.body)
    assert np.allclose(np.frombuffer(found["logits"], "<f4"), expected["logits"]["data"])
    label = expected["label"]["data"][0].encode()
    assert found["label"] == struct.pack("<I", len(label)) + label


def test_only_the_outputs_asked_for_come_back(server, good):
    answer = server.infer({**good, "outputs": [{"name": "label"}, {"name": "logits"}]})
    assert [output["name"] for output in answer.json()["outputs"]] == ["label", "logits"]


def test_every_answer_says_which_version_gave_it(server, good):
    first, second = server.infer(good), server.infer({"inputs": []})
    assert (first.status, second.status) == (200, 400)
    for answer in (first, second):
        assert answer.headers["x-model-version"] == "1"
        assert answer.headers["x-model-digest"] == "sha256:" + "c" * 64
    assert first.headers["x-prediction-id"] != second.headers["x-prediction-id"]
    assert re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", first.headers["x-prediction-id"])


def test_a_trace_is_carried_on_and_nonsense_is_not(server, good):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert server.infer(good, headers=(("traceparent", parent),)).headers["traceparent"] == parent
    assert "traceparent" not in server.infer(good, headers=(("traceparent", "x" * 55),)).headers


def test_two_versions_are_served_and_the_newest_is_the_default(make_server, good):
    server = make_server(versions=2)
    by_path = {
        path: server.infer(good, path=path)
        for path in (
            "/v2/models/income/infer",
            "/v2/models/income/versions/1/infer",
            "/v2/models/income/versions/10/infer",
        )
    }
    assert [answer.headers["x-model-version"] for answer in by_path.values()] == ["10", "1", "10"]
    assert server.ask("GET", "/v2/models/income").json()["versions"] == ["1", "10"]
    assert server.ask("GET", "/v2/models/income/versions/7").status == 404


READABLE = {
    "/v2": "name",
    "/v2/health/live": "live",
    "/v2/health/ready": "ready",
    "/v2/models/income": "inputs",
    "/v2/models/income/ready": "ready",
    "/ping": "ready",
    "/openapi.json": "paths",
}


@pytest.mark.parametrize(("path", "field"), READABLE.items())
def test_reading_paths(server, path, field):
    answer = server.ask("GET", path)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert field in answer.json()
    head = server.ask("HEAD", path)
    assert (head.status, head.body) == (200, b"")


def test_metadata_describes_what_a_consumer_may_send(server):
    inputs = {item["name"]: item for item in server.ask("GET", "/v2/models/income").json()["inputs"]}
    assert inputs["workclass"]["datatype"] == "BYTES"
    assert inputs["workclass"]["parameters"]["categories"] == ["?", "Private", "State-gov"]
    assert inputs["age"]["parameters"] == {"minimum": 0, "maximum": 120, "integer": True}
    assert inputs["history"]["shape"] == [-1, 2, 3]


def test_who_asks_for_another_model_is_told_which_is_here(server):
    for path in ("/v2/models/nix/infer", "/v2/models/income/versions/9/infer"):
        answer = server.ask("POST", path)
        assert answer.status == 404
        assert path in answer.json()["error"]
        assert "this server has income version 1" in answer.json()["error"]


def test_draining_is_said_while_requests_are_still_answered(server, good):
    server.application.is_draining = True
    assert server.ask("GET", "/v2/health/ready").status == 503
    assert server.ask("GET", "/v2/health/live").status == 200
    answer = server.infer(good)
    assert (answer.status, answer.headers["connection"]) == (200, "close")


def test_malformed_requests_get_a_sentence(server):
    contract = tiny_contract()
    good = make_golden_requests(contract)[0].to_inference_request(contract)
    assert server.infer(good).status == 200
    for request in make_malformed_requests(good, contract=contract):
        answer = server.ask(request.method, request.path, request.body, tuple(request.headers.items()))
        assert 400 <= answer.status < 500, request.name
        assert isinstance(answer.json()["error"], str), request.name


LIMITS = {
    "a declared length": ({"max_body_bytes": 10}, {}, (("content-length", "11"),), 413),
    "a body without a length": ({"max_body_bytes": 10}, {"chunk": 4}, (), 413),
    "too many rows": ({"max_batch_rows": 0}, {}, (), 400),
    "too many at once": ({"max_concurrency": 0}, {}, (), 503),
}


@pytest.mark.parametrize(("settings", "options", "headers", "status"), LIMITS.values(), ids=LIMITS)
def test_limits(make_server, good, settings, options, headers, status):
    answer = make_server(**settings).ask(
        "POST", "/v2/models/income/infer", json.dumps(good).encode(), headers, **options
    )
    assert answer.status == status
    assert "error" in answer.json()


def test_an_answer_that_is_not_finite_is_the_callers_problem(server, good):
    good["inputs"][2]["data"] = [3.4e38]
    weights_make_it_overflow = server.infer(good)
    assert weights_make_it_overflow.status in (200, 422)


def test_counts_and_times_are_in_the_metrics(server, good):
    server.infer(good)
    server.infer({"inputs": []})
    text = server.ask("GET", "/metrics").body.decode()
    assert 'mlops_requests_total{model="income",version="1",status="200"} 1' in text
    assert 'mlops_requests_total{model="income",version="1",status="400"} 1' in text
    assert 'mlops_request_seconds_count{model="income",version="1"} 2' in text
    assert re.search(r"^process_resident_memory_bytes \d+$", text, re.MULTILINE)
    assert re.search(r"^mlops_requests_in_flight 1$", text, re.MULTILINE)
