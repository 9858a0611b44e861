"""Stands for the server in an image: the same protocol over a Unix socket, with faults on order (`STUB` as JSON).

Faults: `dies` (exits while starting), `never_ready`, `wrong_by` (added to answers), and a file `unhealthy` beside the
socket makes it unready later.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

STUB = json.loads(os.environ.get("STUB", "{}"))
SOCKET = os.environ.get("SOCKET", "/run/mlops/server.sock")
UNHEALTHY = Path(SOCKET).with_name("unhealthy")


def answer(method, path, body):
    if path == "/v2/health/ready":
        is_ready = not STUB.get("never_ready") and not UNHEALTHY.exists()
        return (200 if is_ready else 503), b"{}"
    if path.endswith("/infer"):
        rows = json.loads(body)["rows"] if body else [0.0]
        value = [row + STUB.get("wrong_by", 0.0) for row in rows]
        content = {"model_version": str(STUB.get("number")), "outputs": [{"name": "probabilities", "data": value}]}
        return 200, json.dumps(content).encode()
    return 404, b"{}"


async def serve_connection(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            method, path, _ = lines[0].split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            await asyncio.sleep(STUB.get("seconds", 0.0))
            status, content = answer(method, path, body)
            writer.write(
                f"HTTP/1.1 {status} X\r\ncontent-length: {len(content)}\r\n"
                f"x-model-version: {STUB.get('number')}\r\n\r\n".encode()
                + content
            )
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    if STUB.get("dies"):
        print("the stub dies as told", flush=True)
        sys.exit(3)
    await asyncio.sleep(STUB.get("start_seconds", 0.0))
    server = await asyncio.start_unix_server(serve_connection, SOCKET)
    Path(SOCKET).chmod(0o777)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    server.close()
    await asyncio.sleep(0.05)


asyncio.run(main())
