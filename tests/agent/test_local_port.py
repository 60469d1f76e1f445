"""The agent's local port: real clients, and what is none."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address

import pytest
import socks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from python_socks.async_.asyncio import Proxy
from tests.agent.conftest import EchoAgent

from msocks.agent.farewell import Farewells
from msocks.agent.local_port import LocalPort
from msocks.agent.settings import AgentLimits
from msocks.errors import ConfigurationError, DestinationError
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Endpoint

GREETING = bytes.fromhex("050100")
CONNECT = bytes.fromhex("05010003") + b"\x0eserver.example" + (80).to_bytes(2, "big")
GRANTED = bytes.fromhex("050005000001 c0000207 1267".replace(" ", ""))


async def exchange(address: tuple[str, int], *pieces: bytes, end: bool = True) -> bytes:
    """Send the pieces one after the other; everything that comes back until the end, or until silence."""
    reader, writer = await asyncio.open_connection(*address)
    received = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.002)
        if end:
            writer.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3 if end else 0.3):
                while data := await reader.read(65536):
                    received += data
    writer.close()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        await writer.wait_closed()
    return received


# -- clients that people use ----------------------------------------------------------------------------------------


async def curl(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--max-time", "1", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, error = await process.communicate()
    return process.returncode or 0, (out + error).decode()


@pytest.mark.parametrize("scheme", ["socks5h", "http"])
async def test_curl_reaches_the_destination_by_name(echo_agent: EchoAgent, scheme: str):
    host, port = echo_agent.address
    # An echo of the request is no HTTP response, which curl takes for HTTP/0.9, and it does not end.
    status, text = await curl(
        "--http0.9", "--proxytunnel", "--proxy", f"{scheme}://{host}:{port}", "http://server.example/x"
    )
    assert (status, "GET /x HTTP/1.1" in text) == (28, True), text
    assert str(echo_agent.requests[0].destination) == "server.example:80"


async def test_curl_is_told_the_reason_of_a_refusal(echo_agent: EchoAgent):
    host, port = echo_agent.address
    echo_agent.refusal = DestinationError.from_reply(0x05, "server.example:80")
    status, text = await curl("--proxy", f"socks5h://{host}:{port}", "http://server.example/")
    assert (status, "(5)" in text) == (97, True), text
    status, text = await curl("--proxytunnel", "--proxy", f"http://{host}:{port}", "http://server.example/")
    assert (status, "502" in text) == (56, True), text


async def test_pysocks_and_python_socks_get_an_echo(echo_agent: EchoAgent):
    host, port = echo_agent.address

    def by_pysocks() -> bytes:
        with socks.socksocket() as sock:
            sock.set_proxy(socks.SOCKS5, host, port, rdns=True)
            sock.connect(("server.example", 80))
            assert sock.get_proxy_sockname() == (b"192.0.2.7", 4711) or sock.get_proxy_sockname() == ("192.0.2.7", 4711)
            sock.sendall(b"hello")
            return bytes(sock.recv(5))

    assert await asyncio.to_thread(by_pysocks) == b"hello"

    for url in (f"socks5://{host}:{port}", f"http://{host}:{port}"):
        sock = await Proxy.from_url(url, rdns=True).connect("server.example", 443)
        with sock:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, b"hello")
            assert await loop.sock_recv(sock, 5) == b"hello"
    assert [str(request.destination) for request in echo_agent.requests[1:]] == ["server.example:443"] * 2


async def test_everything_at_once_and_byte_by_byte_are_the_same(echo_agent: EchoAgent):
    whole = GREETING + CONNECT + b"payload"
    assert await exchange(echo_agent.address, whole) == GRANTED + b"payload"
    assert await exchange(echo_agent.address, *(bytes([byte]) for byte in whole)) == GRANTED + b"payload"
    request = b"CONNECT server.example:80 HTTP/1.1\r\nHost: server.example\r\n\r\n"
    answer = await exchange(echo_agent.address, request + b"payload")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\npayload")
    assert await exchange(echo_agent.address, *(bytes([byte]) for byte in request), b"payload") == answer


# -- what is refused ------------------------------------------------------------------------------------------------

REFUSED = {
    "unknown command": (GREETING + bytes.fromhex("05090001 7f000001 0050".replace(" ", "")), "0507"),
    "unknown address type": (GREETING + bytes.fromhex("05010009 7f000001 0050".replace(" ", "")), "0508"),
    "empty name": (GREETING + bytes.fromhex("0501000300 0050".replace(" ", "")), "0501"),
    "port zero": (GREETING + bytes.fromhex("05010001 c0000201 0000".replace(" ", "")), "0501"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_socks_request_is_refused_with_the_right_code(echo_agent: EchoAgent, name: str):
    data, code = REFUSED[name]
    answer = await exchange(echo_agent.address, data)
    assert answer == bytes.fromhex("0500" + code + "0001" + "00" * 6)
    assert echo_agent.requests == []


async def test_password_only_clients_are_told_that_there_is_no_such_method(echo_agent: EchoAgent):
    assert await exchange(echo_agent.address, bytes.fromhex("050102")) == bytes.fromhex("05ff")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET http://server.example/ HTTP/1.1\r\nHost: server.example\r\n\r\n", b"405"),
        (b"CONNECT server.example HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"CONNECT server.example:0 HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"CONNECT a b c d\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000, b"431"),
    ],
    ids=["GET", "no port", "port zero", "malformed", "long"],
)
async def test_http_request_is_refused_with_the_right_status_and_a_reason(
    echo_agent: EchoAgent, request_: bytes, status: bytes
):
    answer = await exchange(echo_agent.address, request_)
    assert answer.split(b" ")[1] == status
    assert b"\r\n\r\nmsocks: " in answer
    assert echo_agent.requests == []


async def test_a_refusal_is_read_although_the_program_goes_on_sending(echo_agent: EchoAgent):
    answer = await exchange(echo_agent.address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", *[b"x" * 1000] * 50)
    assert answer.startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize(
    "garbage", [b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00", b"\x16\x03\x01\x02\x00", b"\x00", b"\xff" * 5000]
)
async def test_what_is_no_dialogue_is_closed(echo_agent: EchoAgent, garbage: bytes):
    assert await exchange(echo_agent.address, garbage) == b""
    assert echo_agent.port.handshakes == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=600))
def test_random_bytes_leave_the_port_serving(data: bytes):
    async def feed() -> None:
        reactor = Reactor(asyncio.get_running_loop())
        agent = EchoAgent(reactor, AgentLimits(handshake_timeout_s=0.2))
        try:
            for start in (data, GREETING + data, b"CONNECT " + data):
                reader, writer = await asyncio.open_connection(*agent.address)
                writer.write(start)
                writer.write_eof()
                with contextlib.suppress(ConnectionResetError):
                    async with asyncio.timeout(3):
                        while await reader.read(65536):
                            pass
                writer.close()
            assert await exchange(agent.address, GREETING + CONNECT + b"!") == GRANTED + b"!"
        finally:
            agent.close()
            reactor.close()

    asyncio.run(feed())


# -- limits ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
async def test_a_thousand_that_never_speak_keep_nobody_out(make_echo_agent: Callable[..., EchoAgent]):
    agent = make_echo_agent(AgentLimits(handshakes=200, handshake_timeout_s=1.0))
    silent = []
    try:
        for number in range(1000):
            sock = socket.create_connection(agent.address)
            silent.append(sock)
            if number % 50 == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        assert agent.port.handshakes == 200
        began = time.monotonic()
        assert await exchange(agent.address, GREETING + CONNECT + b"!") == GRANTED + b"!"
        assert time.monotonic() - began < 1.0
        await asyncio.sleep(1.1)
        assert agent.port.handshakes == 0
        for sock in silent:
            assert sock.recv(1) == b""
    finally:
        for sock in silent:
            sock.close()


async def test_one_that_speaks_slowly_has_no_more_time_than_one_that_does_not_speak(
    make_echo_agent: Callable[..., EchoAgent],
):
    agent = make_echo_agent(AgentLimits(handshake_timeout_s=0.4))
    reader, writer = await asyncio.open_connection(*agent.address)
    began = time.monotonic()
    with contextlib.suppress(ConnectionResetError):
        for byte in b"CONNECT server.example:80 HTTP/1.1\r\n" * 10:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
            if reader.at_eof():
                break
    assert 0.3 < time.monotonic() - began < 1.0
    writer.close()


async def test_other_than_loopback_needs_a_word(reactor: Reactor):
    farewells = Farewells(reactor)
    port = LocalPort(reactor, AgentLimits(), farewells, lambda request: None)
    everywhere = Endpoint(IPv4Address("0.0.0.0"), 0)
    with pytest.raises(ConfigurationError, match="other hosts") as refused:
        port.open([everywhere], allow_remote=False)
    assert "--allow-remote" in refused.value.remedy
    port.open([everywhere], allow_remote=True)
    assert [endpoint.host for endpoint in port.endpoints] == [IPv4Address("0.0.0.0")]
    port.close()


async def test_a_port_that_is_taken_is_an_error_that_says_so(echo_agent: EchoAgent, reactor: Reactor):
    port = LocalPort(reactor, AgentLimits(), Farewells(reactor), lambda request: None)
    with pytest.raises(ConfigurationError, match="Address already in use") as refused:
        port.open([echo_agent.port.endpoints[0]], allow_remote=False)
    assert "--listen" in refused.value.remedy


async def test_localhost_is_all_its_addresses(reactor: Reactor):
    port = LocalPort(reactor, AgentLimits(), Farewells(reactor), lambda request: None)
    port.open([Endpoint("localhost", 0)], allow_remote=False)
    assert IPv4Address("127.0.0.1") in {endpoint.host for endpoint in port.endpoints}
    port.close()
