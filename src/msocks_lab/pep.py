"""A performance-enhancing proxy (RFC 3135) in a link's access router: it ends TCP in both directions and ACKs for the
far end, as many satellite and some LTE links do. What it has ACKed and not passed on lies in its buffers, and may be
lost.

Started by the lab's supervisor with a SOCK_SEQPACKET Unix socket for commands, a port, and its buffer's size. The
router's firewall redirects the mobile's TCP connections here. A command is one JSON object, its answer another:

    {}                              nothing but the answer
    {"lose": "vanish" | "reset"}    forget all connections and what they hold; tell nobody, or both ends

    {"at": seconds of CLOCK_MONOTONIC when it took effect, "connections": count, "held": {"up": bytes, "down": bytes}}
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import json
import socket
import struct
import sys
import time
from functools import partial
from typing import Any

_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h
_TCP_REPAIR = 19
_SIOCINQ, _SIOCOUTQ = 0x541B, 0x5411
_PIECE = 64 * 1024
_SOCKADDR_IPV4 = struct.Struct("!2xH4s8x")
_SOCKADDR_IPV6 = struct.Struct("!2xHI16sI")


def original_destination(sock: socket.socket) -> tuple[str, int]:
    """Where a redirected connection was meant to go."""
    if sock.family == socket.AF_INET6:
        raw = sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IPV6.size)
        port, _flow, address, _scope = _SOCKADDR_IPV6.unpack(raw)
    else:
        raw = sock.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _SOCKADDR_IPV4.size)
        port, address = _SOCKADDR_IPV4.unpack(raw)
    return socket.inet_ntop(sock.family, address), port


def _queued(sock: socket.socket, request: int) -> int:
    count = array.array("i", [0])
    with contextlib.suppress(OSError):  # it is closed
        fcntl.ioctl(sock, request, count)
    return count[0]


class Direction:
    """One direction of a connection: reads ahead of what the far end takes, up to the buffer's size."""

    def __init__(self, source: socket.socket, sink: socket.socket, size: int) -> None:
        self._source, self._sink, self._size = source, sink, size
        self._buffer = bytearray()
        self._ended = False
        self._changed = asyncio.Condition()

    @property
    def held(self) -> int:
        """Bytes that were ACKed to the sender and that the receiver has not ACKed."""
        return _queued(self._source, _SIOCINQ) + len(self._buffer) + _queued(self._sink, _SIOCOUTQ)

    async def carry(self) -> None:
        """Until the end, which is passed on. Raises OSError where either connection breaks."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fill())
            group.create_task(self._drain())

    async def _fill(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._ended:
            async with self._changed:
                await self._changed.wait_for(lambda: len(self._buffer) < self._size)
            data = await loop.sock_recv(self._source, _PIECE)
            async with self._changed:
                self._buffer += data
                self._ended = not data
                self._changed.notify_all()

    async def _drain(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._buffer or self._ended)
            if not self._buffer:
                self._sink.shutdown(socket.SHUT_WR)
                return
            try:
                taken = self._sink.send(self._buffer[:_PIECE])
            except BlockingIOError:
                await self._writable()
                continue
            async with self._changed:
                del self._buffer[:taken]
                self._changed.notify_all()

    async def _writable(self) -> None:
        loop, number = asyncio.get_running_loop(), self._sink.fileno()
        ready = asyncio.Event()
        loop.add_writer(number, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(number)


class SplitConnection:
    """The two connections that one of the mobile's has become."""

    def __init__(self, near: socket.socket, size: int) -> None:
        self._near = near
        family, destination = near.family, original_destination(near)
        self._far = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._destination = destination
        self._up = Direction(near, self._far, size)
        self._down = Direction(self._far, near, size)
        for sock in (near, self._far):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def held(self) -> tuple[int, int]:
        """Bytes in its buffers, up and down."""
        return self._up.held, self._down.held

    async def carry(self) -> None:
        """Until both directions have ended, or either connection breaks; then the other is reset."""
        try:
            await asyncio.get_running_loop().sock_connect(self._far, self._destination)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._up.carry())
                group.create_task(self._down.carry())
        except* OSError:
            self.reset()
        finally:
            self._near.close()
            self._far.close()

    def reset(self) -> None:
        """Let either close() send an RST."""
        for sock in (self._near, self._far):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def vanish(self) -> None:
        """Let close() send nothing."""
        for sock in (self._near, self._far):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)


class Box:
    """The middlebox; `serve` never returns."""

    def __init__(self, control: socket.socket, port: int, size: int) -> None:
        self._control, self._port, self._size = control, port, size
        self._connections: dict[SplitConnection, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        """Take connections and commands."""
        self._control.setblocking(False)
        async with asyncio.TaskGroup() as group:
            for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                group.create_task(
                    self._accept(socket.create_server((address, self._port), family=family, backlog=1024))
                )
            self._answer()  # ready
            group.create_task(self._obey())

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            near, _ = await loop.sock_accept(listener)
            try:
                connection = SplitConnection(near, self._size)
            except OSError:  # it was not redirected, or is gone
                near.close()
                continue
            task = loop.create_task(connection.carry())
            self._connections[connection] = task
            task.add_done_callback(partial(self._forget, connection))

    def _forget(self, connection: SplitConnection, _task: asyncio.Task[None]) -> None:
        self._connections.pop(connection, None)

    async def _obey(self) -> None:
        loop = asyncio.get_running_loop()
        while message := await loop.sock_recv(self._control, 65536):
            command: dict[str, Any] = json.loads(message)
            if "lose" in command:
                for connection, task in list(self._connections.items()):
                    connection.vanish() if command["lose"] == "vanish" else connection.reset()
                    task.cancel()
                await asyncio.gather(*self._connections.values(), return_exceptions=True)
            self._answer()
        sys.exit(0)

    def _answer(self) -> None:
        held = [connection.held for connection in self._connections]
        sums = {"up": sum(up for up, _ in held), "down": sum(down for _, down in held)}
        told = {"at": time.monotonic(), "connections": len(held), "held": sums}
        self._control.send(json.dumps(told).encode())


def main() -> None:
    """`python -m msocks_lab.pep CONTROL_FD PORT BUFFER_BYTES`."""
    control, port, size = (int(argument) for argument in sys.argv[1:])
    asyncio.run(Box(socket.socket(fileno=control), port, size).serve())


if __name__ == "__main__":
    main()
