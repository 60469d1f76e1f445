"""Programs that use the library, run on the mobile host by test_library.py: NAME ACCESS_FILE CERTIFICATE LOOP."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import ssl
import sys
import threading
import time
from typing import Any

import uvloop

import msocks
from msocks.transport.leg_stream import LegStream

UDP_ECHO, ECHO, TLS_ECHO, UPGRADE = 7000, 7001, 7002, 7003


def client_context(certificate: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate)


async def move_about(reader: asyncio.StreamReader, writer: msocks.MobileStreamWriter, links: list[str]) -> list[str]:
    """Echo 300 kB on every link; what came back must be what was sent."""
    seen = []
    for link in links:
        await writer.move(link)
        block = hashlib.sha256(link.encode()).digest() * 10_000
        writer.write(block)
        await writer.drain()
        assert await reader.readexactly(len(block)) == block
        seen.append(str(writer.link))
    return seen


async def streams(access: str, certificate: str) -> dict[str, Any]:
    del certificate
    reader, writer = await msocks.open_connection("server", ECHO, access=access)
    events: list[str] = []

    async def listen() -> None:
        events.extend([type(event).__name__ async for event in writer.events()])

    listening = asyncio.create_task(listen())
    seen = await move_about(reader, writer, ["lte", "wifi", "lte"])
    writer.write_eof()
    rest = await reader.read()
    peer = writer.get_extra_info("peername")
    session = writer.session
    writer.close()
    await writer.wait_closed()
    await asyncio.wait_for(listening, 10)
    await msocks.close_nodes()
    return {"seen": seen, "rest": len(rest), "peer": peer, "session": session, "events": events}


async def tls(access: str, certificate: str) -> dict[str, Any]:
    context = client_context(certificate)
    reader, writer = await msocks.open_connection("server", TLS_ECHO, access=access, ssl=context)
    cipher = writer.get_extra_info("cipher")
    seen = await move_about(reader, writer, ["lte", "wifi"])
    writer.close()
    return {"seen": seen, "tls": cipher[1]}


async def start_tls(access: str, certificate: str) -> dict[str, Any]:
    reader, writer = await msocks.open_connection("server", UPGRADE, access=access)
    writer.write(b"STARTTLS\n")
    assert await reader.readline() == b"go ahead\n"
    await writer.start_tls(client_context(certificate), server_hostname="server")
    seen = await move_about(reader, writer, ["lte", "wifi"])
    writer.close()
    return {"seen": seen, "tls": writer.get_extra_info("cipher")[1]}


async def refused(access: str, certificate: str) -> dict[str, Any]:
    del certificate
    found = {}
    for name, destination in {"closed": ("server", 9), "denied": ("127.0.0.1", 80), "unknown": ("nowhere", 80)}.items():
        try:
            await msocks.open_connection(*destination, access=access)
        except msocks.DestinationError as error:
            found[name] = [type(error).__mro__[1].__name__, error.reply_code, isinstance(error, OSError)]
    reader, writer = await msocks.open_connection("server", ECHO, access=access)
    try:
        await writer.move("eth9")
    except msocks.LinkUnavailable as error:
        found["link"] = [error.link]
    writer.write(b"still here")
    found["after"] = [(await reader.readexactly(10)).decode()]
    writer.transport.abort()
    return found


async def miscounting(access: str, certificate: str) -> dict[str, Any]:
    """It believes to have received more than was ever sent: nothing can be made of that."""
    del certificate
    received = LegStream.received
    reader, writer = await msocks.open_connection("server", ECHO, access=access)
    writer.write(b"once")
    assert await reader.readexactly(4) == b"once"
    LegStream.received = lambda self: received(self) + 1  # type: ignore[method-assign]
    found: dict[str, Any] = {}
    assert await (await asyncio.create_subprocess_exec("ip", "link", "set", str(writer.link), "down")).wait() == 0
    try:
        await reader.read()
    except ConnectionError as error:
        found["read"] = str(error)
    await msocks.close_nodes()
    return found


async def datagrams(access: str, certificate: str) -> dict[str, Any]:
    del certificate
    seen, sources = [], []
    async with await msocks.open_datagrams(access=access, link="wifi") as udp:
        seen.append(udp.link)
        for link in ("lte", "wifi", "lte"):
            await udp.move(link)
            question = f"over {link}".encode()
            for _ in range(5):
                udp.send(question, "server", UDP_ECHO)
                try:
                    answer, source = await asyncio.wait_for(udp.receive(), 2)
                    break
                except TimeoutError:
                    continue
            assert answer == question
            seen.append(udp.link)
            sources.append(source)
    events = [type(event).__name__ async for event in udp.events()]
    ended = []
    for call in (lambda: udp.send(b"", "server", UDP_ECHO), udp.receive, lambda: udp.move("wifi")):
        try:
            if (waiting := call()) is not None:
                await waiting
        except msocks.SessionEnded as error:
            ended.append(type(error).__name__)
    await msocks.close_nodes()
    return {"seen": seen, "sources": sources, "events": events, "ended": ended, "dropped": udp.dropped}


async def accepting(access: str, port: str) -> dict[str, Any]:
    """Echo 256 kB blocks to a peer that has connected to the proxy, each sent back over another link."""
    async with await msocks.listen(int(port), access=access) as listener:
        print(json.dumps(listener.address), flush=True)
        reader, writer = await listener.accept()
        for link in ("lte", "wifi", "lte"):
            first = await reader.readexactly(1)
            await writer.move(link)
            writer.write(first + await reader.readexactly(255_999))
        assert await reader.read() == b""
        writer.close()
        events = [type(event).__name__ async for event in writer.events()]
        try:
            await msocks.listen(1, access=access)
        except msocks.ListenError as error:
            refused = [type(error).__name__, error.errno, error.what.partition(": ")[2][:30]]
    await msocks.close_nodes()
    return {"peer": writer.get_extra_info("peername"), "events": events, "refused": refused}


async def late(access: str, certificate: str) -> dict[str, Any]:
    """It reads when the server has long closed, and the session has ended while its leg was to be replaced."""
    del certificate
    block = hashlib.sha256(b"late").digest() * 3_000
    reader, writer = await msocks.open_connection("server", ECHO, access=access, limit=16_384)
    writer.write(block)
    writer.write_eof()
    ended = False
    for link in ("lte", "wifi") * 10:
        await asyncio.sleep(0.2)
        try:
            await writer.move(link)
        except msocks.SessionEnded:
            ended = True
            break
    whole = await reader.read() == block
    events = [type(event).__name__ async for event in writer.events()]
    writer.close()
    await msocks.close_nodes()
    return {"ended": ended, "whole": whole, "last": events[-1]}


def late_blocking(access: str, certificate: str) -> dict[str, Any]:
    """The same, with a socket whose program has taken nothing yet."""
    del certificate
    block = hashlib.sha256(b"late").digest() * 12_000
    with msocks.create_connection(("server", ECHO), timeout=20, access=access) as connection:

        def send() -> None:
            connection.sendall(block)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        ended = False
        for link in ("lte", "wifi") * 10:
            time.sleep(0.2)
            try:
                connection.move(link)
            except msocks.SessionEnded:
                ended = True
                break
        with connection.makefile("rb") as file:
            whole = file.read() == block
        sender.join()
    return {"ended": ended, "whole": whole, "last": "Ended"}


def blocking(access: str, certificate: str) -> dict[str, Any]:
    kinds: list[str] = []
    seen = []
    with msocks.create_connection(("server", ECHO), timeout=20, access=access) as connection:
        connection.on_event(lambda event: kinds.append(type(event).__name__))
        for link in ("lte", "wifi"):
            connection.move(link)
            block = hashlib.sha256(link.encode()).digest() * 10_000
            sender = threading.Thread(target=connection.sendall, args=(block,))
            sender.start()
            with connection.makefile("rb") as file:
                assert file.read(len(block)) == block
            sender.join()
            seen.append(str(connection.link))
        connection.shutdown(1)
        rest = connection.recv(100)
    raw = msocks.create_connection(("server", TLS_ECHO), timeout=20, access=access)
    with client_context(certificate).wrap_socket(raw, server_hostname="server") as wrapped:
        wrapped.sendall(b"through tls")
        answer = wrapped.recv(100).decode()
    return {"seen": seen, "rest": len(rest), "events": kinds, "tls": answer}


def main() -> None:
    name, access, certificate, loop = sys.argv[1:]
    programs = (streams, tls, start_tls, refused, miscounting, datagrams, accepting, blocking, late, late_blocking)
    program = {program.__name__: program for program in programs}[name]
    result = program(access, certificate)
    if asyncio.iscoroutine(result):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
            result = runner.run(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
