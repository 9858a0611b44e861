"""The server's sockets: clients that hang, talk too much, smuggle; drain with requests under way; real clients."""

import itertools
import json
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest

from mlops.errors import ServingError
from mlops.serving.golden import make_golden_requests
from mlops.serving.runtime import RunRequest
from mlops.serving.runtime_process import ProcessRuntime
from mlops.serving.socket_client import SocketClient
from mlops.serving.testing import tiny_contract

_PATH = "/v2/models/income/infer"


@pytest.fixture(scope="module")
def start(bakery, tmp_path_factory):
    """Start the image as a process; returns runtime and instance once it is ready."""
    runtime = ProcessRuntime(tmp_path_factory.mktemp("connections"))
    started = []

    def run(name, tcp_port=None, **environment):
        sockets = Path(tempfile.mkdtemp(prefix="sock-"))
        request = RunRequest(
            name=name,
            layout=bakery.request.layout,
            digest=bakery.built.digest,
            socket_folder=sockets,
            tcp_port=tcp_port,
            environment=environment,
        )
        instance = runtime.start(request)
        started.append(instance)
        for _ in range(400):
            try:
                with SocketClient(instance.socket, timeout_seconds=5) as client:
                    if client.ask("GET", "/v2/health/ready", body=b"", headers={}).status == 200:
                        return runtime, instance
            except ServingError:
                time.sleep(0.02)
        raise AssertionError(runtime.logs(instance))

    yield run
    for instance in started:
        runtime.stop(instance, timeout_seconds=10)
        shutil.rmtree(instance.socket.parent)


@pytest.fixture(scope="module")
def server(start):
    return start("shared", BODY_TIMEOUT_SECONDS="0.5")[1]


@pytest.fixture
def body():
    contract = tiny_contract()
    return json.dumps(make_golden_requests(contract)[0].to_inference_request(contract)).encode()


def _talk(instance, *pieces, seconds=8.0):
    """Send raw bytes; everything that comes back until the server closes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds)
        connection.connect(str(instance.socket))
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while part := connection.recv(65_536):
            received += part
        return received


def _head(length, extra=b""):
    return b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n" % (
        _PATH.encode(),
        length,
        extra,
    )


HANGING = {
    "a body that never comes": (_head(100),),
    "half a body": (_head(100), b"{"),
    "half a head": (b"GET /ping HT",),
    "a head without an end": (b"GET /ping HTTP/1.1\r\nhost: x\r\n",),
}


@pytest.mark.parametrize("pieces", HANGING.values(), ids=HANGING)
def test_a_client_that_hangs_is_cut_off_with_408(server, pieces):
    answer = _talk(server, *pieces)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'{"error": ' in answer


REFUSED = {
    "not HTTP": (b"\x16\x03\x01hello\r\n\r\n", b"400"),
    "a head without measure": (b"GET /ping HTTP/1.1\r\n" + b"x-a: %b\r\n" % (b"y" * 8_000) * 10, b"431"),
    "a whole head that is too large": (b"GET /ping HTTP/1.1\r\nhost: x\r\nx-a: %b\r\n\r\n" % (b"y" * 65_536), b"431"),
    "two lengths": (_head(1, b"content-length: 2\r\n"), b"400"),
    "a length and chunks": (_head(3, b"transfer-encoding: chunked\r\n"), b"400"),
    "a length that is no number": (b"POST %b HTTP/1.1\r\ncontent-length: x\r\n\r\n" % _PATH.encode(), b"400"),
    "a space before the colon": (b"GET /ping HTTP/1.1\r\nhost : x\r\n\r\n", b"400"),
}


@pytest.mark.parametrize(("sent", "status"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_clean_http_is_refused(server, sent, status):
    answer = _talk(server, sent)
    assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]
    assert b"application/json" in answer


def test_a_large_head_that_is_allowed_may_come_in_any_pieces_before_a_body(server, body):
    sent = _head(len(body), b"connection: close\r\nx-a: %b\r\n" % (b"y" * 65_000)) + body
    end = sent.index(b"\r\n\r\n")
    for cuts in ((), (end + 2,), (end + 3, end + 9), (1_000, end + 1, end + 4)):
        places = (0, *cuts, len(sent))
        pieces = [sent[start:stop] for start, stop in itertools.pairwise(places)]
        assert _talk(server, *pieces).startswith(b"HTTP/1.1 200 "), cuts


def test_after_all_that_it_still_answers(server, body):
    with SocketClient(server.socket, timeout_seconds=10) as client:
        answer = client.ask("POST", _PATH, body=body, headers={"content-type": "application/json"})
    assert answer.status == 200


def test_requests_under_way_are_finished_on_sigterm_and_new_ones_refused(start, body):
    runtime, instance = start("drain")
    with socket.socket(socket.AF_UNIX) as slow:
        slow.settimeout(10)
        slow.connect(str(instance.socket))
        slow.sendall(_head(len(body)) + body[:-1])
        time.sleep(0.3)
        codes = []
        stopping = threading.Thread(target=lambda: codes.append(runtime.stop(instance, timeout_seconds=10)))
        stopping.start()
        time.sleep(0.5)
        with pytest.raises(ServingError), SocketClient(instance.socket, timeout_seconds=5) as client:
            client.ask("GET", "/ping", body=b"", headers={})
        slow.sendall(body[-1:])
        assert slow.recv(65_536).startswith(b"HTTP/1.1 200 ")
        stopping.join()
    assert codes == [0]


def test_logs_are_json_lines_with_the_prediction_id(start, body):
    runtime, instance = start("logs", REQUEST_LOG="all")
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with SocketClient(instance.socket, timeout_seconds=10) as client:
        headers = {"content-type": "application/json", "traceparent": trace}
        answer = client.ask("POST", _PATH, body=body, headers=headers)
    until = time.monotonic() + 20
    mine = None
    while mine is None and time.monotonic() < until:  # the line is written after the answer has left
        lines = [json.loads(line) for line in runtime.logs(instance).splitlines()]
        mine = next((line for line in lines if line.get("prediction") == answer.headers["x-prediction-id"]), None)
    assert lines[0]["event"] == "start"
    assert mine is not None
    assert (mine["status"], mine["traceparent"], mine["path"]) == (200, trace, _PATH)
