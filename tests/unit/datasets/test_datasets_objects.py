"""Remotes that answer, are in trouble, or send half of an object; over real HTTP on loopback."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mlops.datasets.objects import object_path, read_object
from mlops.errors import DatasetError

CONTENT = b"rows of a shard" * 100
MD5 = hashlib.md5(CONTENT).hexdigest()


class Store(BaseHTTPRequestHandler):
    """Behaves as the first part of the path says."""

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, *, with_body):
        kind = self.path.split("/")[1]
        self.send_response({"broken": 500, "empty": 404}.get(kind, 200))
        self.send_header("Content-Length", str(len(CONTENT)) if kind != "empty" else "0")
        self.end_headers()
        if with_body and kind != "empty":
            self.wfile.write(CONTENT[:10] if kind == "cut" else CONTENT)
        self.close_connection = True

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_object_is_read_over_http(address):
    assert read_object((f"{address}/good",), MD5, what="shard 7") == CONTENT


@pytest.mark.parametrize(
    ("kind", "said"),
    [("broken", "shard 7 cannot be read"), ("cut", "shard 7 cannot be read"), ("empty", "is in no store")],
)
def test_a_remote_in_trouble_is_said_and_passed_over_for_a_good_one(kind, said, address, tmp_path):
    with pytest.raises(DatasetError, match=said):
        read_object((f"{address}/{kind}",), MD5, what="shard 7")
    place = tmp_path / object_path("store", MD5)
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert read_object((f"{address}/{kind}", str(tmp_path / "store")), MD5, what="shard 7") == CONTENT
