"""The tests' server closes every connection, whatever it was about to do with it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket

import pytest
from tests.own_server import serving


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_that_comes_in_the_last_turns_of_the_loop_is_closed(turns: int):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    listener = socket.create_server(("127.0.0.1", 0))
    async with serving(listener, serve):
        client = socket.create_connection(listener.getsockname(), timeout=5)
        for _ in range(turns):
            await asyncio.sleep(0)
    with client, contextlib.suppress(ConnectionResetError):
        assert await asyncio.to_thread(client.recv, 1) == b""
    gc.collect()  # would warn of what is left, and a warning fails the test
