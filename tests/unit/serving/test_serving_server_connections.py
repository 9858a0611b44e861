"""One connection of the server, on a socket of this process."""

import asyncio

import uvicorn
from uvicorn.server import ServerState

from mlops.serving.server.connections import BoundedProtocol


async def _answer(scope, receive, send):
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def test_a_request_that_lies_unread_when_the_server_ends_is_answered():
    async def ask():
        config = uvicorn.Config(_answer, http=BoundedProtocol, lifespan="off", log_config=None)
        config.load()
        state = ServerState()
        listener = await asyncio.get_running_loop().create_server(
            lambda: BoundedProtocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        while not state.connections:
            await asyncio.sleep(0)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        for connection in state.connections:
            connection.shutdown()
        answer = await reader.read()
        writer.close()
        listener.close()
        return answer

    assert asyncio.run(ask()).startswith(b"HTTP/1.1 200 ")
