"""The SOCKS5 server, by hand and with clients that other people wrote: curl, PySocks, python-socks."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import socks
from python_socks import ProxyConnectionError, ProxyError
from python_socks.async_.asyncio import Proxy as PythonSocks
from tests.own_server import serving
from tests.proxy.conftest import RunningProxy, StartProxy
from tests.proxy.mobile_node import Server, dial, read_all, read_exactly, receive, reset, send, server_on

from msocks.store.administration import set_password
from msocks.store.running_proxy import sessions
from msocks.values.endpoint import Endpoint

NO_AUTHENTICATION = b"\x05\x01\x00"
GRANTED = b"\x05\x00\x00"


def request(destination: Endpoint, command: int = 1) -> bytes:
    port = struct.pack(">H", destination.port)
    match destination.address:
        case None:
            name = str(destination.host).encode()
            return bytes((5, command, 0, 3, len(name))) + name + port
        case address:
            return bytes((5, command, 0, 1 if address.version == 4 else 4)) + address.packed + port


async def negotiate(proxy: RunningProxy, destination: Endpoint, command: int = 1) -> tuple[socket.socket, int]:
    """A connection after the proxy's reply, and the reply code."""
    sock = await dial(proxy.endpoint)
    await send(sock, NO_AUTHENTICATION)
    assert await read_exactly(sock, 2) == b"\x05\x00"
    await send(sock, request(destination, command))
    head = await read_exactly(sock, 4)
    await read_exactly(sock, 6 if head[3] == 1 else 18)
    return sock, head[1]


async def connected(proxy: RunningProxy, server: Server) -> tuple[socket.socket, socket.socket]:
    sock, code = await negotiate(proxy, server.endpoint)
    assert code == 0
    return sock, await server.accept()


@asynccontextmanager
async def web_server(body: bytes) -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    listener = socket.create_server(("127.0.0.1", 0))
    async with serving(listener, answer):
        yield listener.getsockname()[1]


async def curl(*arguments: str) -> tuple[int, bytes]:
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--max-time", "10", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
async def test_curl_downloads_through_the_proxy(open_proxy: RunningProxy, scheme: str):
    body = bytes(range(256)) * 20_000
    async with web_server(body) as port:
        code, output = await curl("--proxy", f"{scheme}://{open_proxy.endpoint}", f"http://localhost:{port}/")
    assert (code, output == body) == (0, True)


async def test_curl_logs_in_with_a_password(proxy: RunningProxy):
    await proxy.add_user("alice")
    await asyncio.to_thread(set_password, proxy.state, "alice", "open sesame")
    async with web_server(b"hello") as port:
        arguments = ("--proxy", f"socks5h://{proxy.endpoint}", f"http://127.0.0.1:{port}/")
        assert await curl("--proxy-user", "alice:open sesame", *arguments) == (0, b"hello")
        assert await curl("--proxy-user", "alice:open sesame", *arguments) == (0, b"hello")
        for wrong in ("alice:wrong", "bob:open sesame"):
            assert (await curl("--proxy-user", wrong, *arguments))[0] == 97
        assert (await curl(*arguments))[0] == 97
    assert len(proxy.events("password_refused")) == 2


async def test_pysocks_connects(open_proxy: RunningProxy, server: Server):
    def use() -> bytes:
        with socks.socksocket() as sock:
            sock.set_proxy(socks.SOCKS5, "127.0.0.1", open_proxy.endpoint.port)
            sock.settimeout(5)
            sock.connect((str(server.endpoint.host), server.endpoint.port))
            sock.sendall(b"ping")
            return bytes(sock.recv(4))

    using = asyncio.create_task(asyncio.to_thread(use))
    remote = await server.accept()
    assert await read_exactly(remote, 4) == b"ping"
    await send(remote, b"pong")
    assert await using == b"pong"


async def test_pysocks_logs_in_and_reads_the_reply_code(proxy: RunningProxy):
    await proxy.add_user("alice")
    await asyncio.to_thread(set_password, proxy.state, "alice", "p")

    def use(port: int) -> None:
        with socks.socksocket() as sock:
            sock.set_proxy(socks.SOCKS5, "127.0.0.1", proxy.endpoint.port, username="alice", password="p")
            sock.settimeout(5)
            sock.connect(("127.0.0.1", port))

    with pytest.raises(socks.GeneralProxyError, match="0x05: Connection refused"):
        await asyncio.to_thread(use, 1)


async def test_python_socks_connects_and_reads_the_reply_code(open_proxy: RunningProxy, server: Server):
    client = PythonSocks.from_url(f"socks5://{open_proxy.endpoint}")
    sock = await client.connect("localhost", server.endpoint.port)
    remote = await server.accept()
    await send(sock, b"ping")
    assert await read_exactly(remote, 4) == b"ping"
    sock.close()
    with pytest.raises((ProxyError, ProxyConnectionError), match="not allowed"):
        await client.connect("10.0.0.1", 80)


async def test_the_reply_names_the_proxys_address_toward_the_server(open_proxy: RunningProxy, server: Server):
    sock = await dial(open_proxy.endpoint)
    await send(sock, NO_AUTHENTICATION + request(server.endpoint) + b"early")
    assert await read_exactly(sock, 2) == b"\x05\x00"
    reply = await read_exactly(sock, 10)
    remote = await server.accept()
    host, port = remote.getpeername()
    assert reply == GRANTED + b"\x01" + socket.inet_aton(host) + struct.pack(">H", port)
    assert await read_exactly(remote, 5) == b"early"
    sock.close()


async def test_an_ipv6_destination_is_answered_with_an_ipv6_address(open_proxy: RunningProxy):
    async with server_on("::1") as server:
        sock, code = await negotiate(open_proxy, server.endpoint)
        assert code == 0
        await server.accept()
        sock.close()


async def test_half_close_passes_in_both_directions(open_proxy: RunningProxy, server: Server):
    sock, remote = await connected(open_proxy, server)
    await send(sock, b"request")
    sock.shutdown(socket.SHUT_WR)
    assert await read_all(remote) == b"request"
    await send(remote, b"answer")
    remote.shutdown(socket.SHUT_WR)
    assert await read_all(sock) == b"answer"
    sock.close()


async def test_a_reset_of_the_server_reaches_the_client(open_proxy: RunningProxy, server: Server):
    sock, remote = await connected(open_proxy, server)
    reset(remote)
    with pytest.raises(ConnectionResetError):
        await receive(sock)
    sock.close()


async def test_a_reset_of_the_client_reaches_the_server(open_proxy: RunningProxy, server: Server):
    sock, remote = await connected(open_proxy, server)
    reset(sock)
    with pytest.raises(ConnectionResetError):
        await receive(remote)


async def test_a_client_that_goes_while_the_server_is_sought_takes_the_attempt_with_it(open_proxy: RunningProxy):
    # A listener whose queue is full answers no SYN.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        sock = await dial(open_proxy.endpoint)
        await send(sock, NO_AUTHENTICATION + request(Endpoint.from_sockaddr(full.getsockname())))
        while [entry["state"] for entry in await asyncio.to_thread(sessions, open_proxy.state)] != ["connecting"]:
            pass
        reset(sock)
        while await asyncio.to_thread(sessions, open_proxy.state):
            pass
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize(
    ("destination", "code", "reply"),
    [
        ("127.0.0.1:1", 0x05, "connection_refused"),
        ("10.0.0.1:80", 0x02, "not_allowed"),
        ("[fd00::1]:80", 0x02, "not_allowed"),
        ("[::ffff:10.0.0.1]:80", 0x02, "not_allowed"),
        ("nowhere.invalid:80", 0x04, "host_unreachable"),
        ("127.0.0.1:0", 0x02, "not_allowed"),
    ],
)
async def test_each_failure_has_its_reply_code_and_one_log_line(
    open_proxy: RunningProxy, destination: str, code: int, reply: str
):
    sock, got = await negotiate(open_proxy, Endpoint.parse(destination))
    assert got == code
    assert await receive(sock) == b""
    sock.close()
    lines = open_proxy.events("destination_failed")
    assert [(line["destination"], line["reply"]) for line in lines] == [(str(Endpoint.parse(destination)), reply)]


async def test_a_name_with_a_denied_address_only_is_denied(start_proxy: StartProxy):
    proxy = await start_proxy(open=True, allow=())
    sock, code = await negotiate(proxy, Endpoint.parse("localhost:80"))
    assert code == 0x02
    sock.close()


async def test_the_proxy_is_no_destination_of_its_own(open_proxy: RunningProxy):
    sock, code = await negotiate(open_proxy, open_proxy.endpoint)
    assert code == 0x02
    sock.close()
    assert "proxy itself" in open_proxy.events("destination_failed")[0]["reason"]


async def test_the_proxy_is_no_destination_behind_a_wildcard_either(start_proxy: StartProxy):
    proxy = await start_proxy(open=True, listen=(Endpoint.parse("[::]:0"),))
    for host in ("127.0.0.1", "127.9.9.9", "::1"):
        sock, code = await negotiate(proxy, Endpoint.of(host, proxy.endpoint.port))
        assert code == 0x02, host
        sock.close()


async def test_a_server_that_does_not_answer_times_out(start_proxy: StartProxy):
    proxy = await start_proxy(open=True, connect_timeout_s=0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        sock, code = await negotiate(proxy, Endpoint.from_sockaddr(full.getsockname()))
        for filler in fillers:
            filler.close()
    assert code == 0x06
    sock.close()


async def test_an_undefined_command_is_refused_as_such(open_proxy: RunningProxy, server: Server):
    sock, code = await negotiate(open_proxy, server.endpoint, 9)
    assert code == 0x07
    assert await receive(sock) == b""
    sock.close()


async def test_an_undefined_address_type_is_refused_as_such(open_proxy: RunningProxy):
    sock = await dial(open_proxy.endpoint)
    await send(sock, NO_AUTHENTICATION + b"\x05\x01\x00\x02" + bytes(6))
    assert (await read_all(sock))[2:4] == b"\x05\x08"
    sock.close()


async def test_a_closed_proxy_has_no_method_for_strangers(proxy: RunningProxy):
    for greeting in (NO_AUTHENTICATION, b"\x05\x02\x00\x02", b"\x05\x00"):
        sock = await dial(proxy.endpoint)
        await send(sock, greeting)
        assert await read_all(sock) == b"\x05\xff"
        sock.close()


async def test_an_open_proxy_says_so_loudly(open_proxy: RunningProxy):
    assert [line["log_level"] for line in open_proxy.events("open_proxy")] == ["warning"]


@pytest.mark.parametrize("changed_to", [None, "another"])
async def test_a_password_that_was_right_is_refused_as_soon_as_it_is_changed(
    proxy: RunningProxy, server: Server, changed_to: str | None
):
    for name in ("alice", "bob"):
        await proxy.add_user(name)
        await asyncio.to_thread(set_password, proxy.state, name, "p")
    client = PythonSocks.from_url(f"socks5://alice:p@{proxy.endpoint}")
    for _ in range(2):
        sock = await client.connect("127.0.0.1", server.endpoint.port)
        sock.close()
    await asyncio.to_thread(set_password, proxy.state, "alice", changed_to)
    with pytest.raises(ProxyError):
        await client.connect("127.0.0.1", server.endpoint.port)


async def test_log_lines_hold_no_password(proxy: RunningProxy):
    await proxy.add_user("alice")
    await asyncio.to_thread(set_password, proxy.state, "alice", "right-secret")
    for password in ("right-secret", "wrong-secret"):
        await curl("--proxy-user", f"alice:{password}", "--proxy", f"socks5h://{proxy.endpoint}", "http://10.0.0.1/")
    assert proxy.log
    assert "secret" not in str(proxy.log)
