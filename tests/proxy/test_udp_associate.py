"""UDP ASSOCIATE of plain SOCKS5 clients, by hand and with PySocks; servers are real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import socks
from tests.proxy.conftest import RunningProxy, StartProxy, eventually
from tests.proxy.mobile_node import dial, read_all, read_exactly, receive, send
from tests.proxy.udp_server import UdpServer

from msocks.errors import ConfigurationError
from msocks.protocol.socks5_udp import decode_udp, encode_udp
from msocks.proxy.config import ProxyConfig, ProxyLimits
from msocks.store.administration import remove_user, set_password
from msocks.store.running_proxy import udp_associations
from msocks.values.endpoint import Endpoint

PATIENCE_S = 3.0
QUIET_S = 0.06
NOTHING = Endpoint.parse("0.0.0.0:0")
IPV4_ONLY = "127.0.0.1"


class Client:
    """A SOCKS5 client with a UDP association."""

    def __init__(self, connection: socket.socket, relay: Endpoint, sock: socket.socket) -> None:
        self.connection = connection
        self.relay = relay
        self.sock = sock

    def send(self, destination: Endpoint, payload: bytes) -> None:
        self.send_raw(encode_udp(destination, payload))

    def send_raw(self, datagram: bytes) -> None:
        self.sock.sendto(datagram, (str(self.relay.host), self.relay.port))

    async def receive(self, within_s: float = PATIENCE_S) -> tuple[Endpoint, bytes]:
        loop = asyncio.get_running_loop()
        received = decode_udp(await asyncio.wait_for(loop.sock_recv(self.sock, 65536), within_s))
        assert received.fragment == 0
        return received.endpoint, received.payload

    async def is_quiet(self) -> bool:
        try:
            await self.receive(QUIET_S)
        except TimeoutError:
            return True
        return False


def associate_request(announced: Endpoint) -> bytes:
    address = announced.address
    assert address is not None
    return bytes((5, 3, 0, 1 if address.version == 4 else 4)) + address.packed + struct.pack(">H", announced.port)


async def ask(proxy: Endpoint, announced: Endpoint = NOTHING) -> tuple[socket.socket, int, Endpoint]:
    """A connection after the reply, its code, and BND."""
    connection = await dial(proxy)
    await send(connection, b"\x05\x01\x00")
    assert await read_exactly(connection, 2) == b"\x05\x00"
    await send(connection, associate_request(announced))
    head = await read_exactly(connection, 4)
    packed = await read_exactly(connection, 4 if head[3] == 1 else 16)
    (port,) = struct.unpack(">H", await read_exactly(connection, 2))
    return connection, head[1], Endpoint.of(str(ip_address(packed)), port)


@contextlib.asynccontextmanager
async def associated(proxy: Endpoint, announced: Endpoint = NOTHING, port: int = 0) -> AsyncIterator[Client]:
    connection, code, relay = await ask(proxy, announced)
    assert code == 0
    family = socket.AF_INET6 if relay.address is not None and relay.address.version == 6 else socket.AF_INET
    with connection, socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        if port:
            sock.bind((IPV4_ONLY, port))
        yield Client(connection, relay, sock)


def dropped(proxy: RunningProxy) -> dict[str, int]:
    """What the only association has dropped."""
    assert proxy.proxy._core is not None
    (view,) = proxy.proxy._core.udp
    return {cause: count for cause, count in view.dropped.items() if count}


def associations(proxy: RunningProxy) -> int:
    assert proxy.proxy._core is not None
    return len(proxy.proxy._core.udp)


# -- datagrams ------------------------------------------------------------------------------------------------------


async def test_datagrams_go_there_and_back(open_proxy: RunningProxy, echo: UdpServer):
    async with associated(open_proxy.endpoint) as client:
        for payload in (b"", b"a question", bytes(1400), bytes(60_000)):
            client.send(echo.endpoint, payload)
            assert await client.receive() == (echo.endpoint, payload)
    assert len(set(echo.sources)) == 1


async def test_pysocks_sends_and_receives(open_proxy: RunningProxy, echo: UdpServer):
    def talk() -> tuple[bytes, Any]:
        with socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.set_proxy(socks.SOCKS5, str(open_proxy.endpoint.host), open_proxy.endpoint.port)
            sock.settimeout(PATIENCE_S)
            sock.sendto(b"by PySocks", (str(echo.endpoint.host), echo.endpoint.port))
            answer: tuple[bytes, Any] = sock.recvfrom(2048)
            return answer

    assert await asyncio.to_thread(talk) == (b"by PySocks", (str(echo.endpoint.host), echo.endpoint.port))


async def test_one_association_reaches_many_servers_over_both_families_from_one_port(open_proxy: RunningProxy):
    servers = [UdpServer(), UdpServer("127.0.0.9"), UdpServer("::1")]
    try:
        async with associated(open_proxy.endpoint) as client:
            for server in servers:
                client.send(server.endpoint, str(server.endpoint).encode())
                assert await client.receive() == (server.endpoint, str(server.endpoint).encode())
        assert len({server.sources[0][1] for server in servers}) == 1
    finally:
        for server in servers:
            server.close()


async def test_names_are_resolved_by_the_proxy(open_proxy: RunningProxy, echo: UdpServer):
    async with associated(open_proxy.endpoint) as client:
        for payload in (b"first", b"second"):
            client.send(Endpoint("localhost", echo.endpoint.port), payload)
            client.send(Endpoint("LocalHost", echo.endpoint.port), payload)
            assert {await client.receive(), await client.receive()} == {(echo.endpoint, payload)}
        client.send(Endpoint("no-such-name.invalid", 53), b"")
        client.send(echo.endpoint, b"goes on")
        assert await client.receive() == (echo.endpoint, b"goes on")
        await eventually(lambda: dropped(open_proxy) == {"unresolved": 1})


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.77"])
async def test_behind_a_wildcard_the_client_is_told_the_address_that_it_has_reached(
    start_proxy: StartProxy, echo: UdpServer, listen: str, address: str
):
    proxy = await start_proxy(open=True, listen=(Endpoint.parse(listen),))
    async with associated(Endpoint.of(address, proxy.endpoint.port)) as client:
        assert client.relay.host == ip_address(address)
        client.send(echo.endpoint, b"!")
        assert await client.receive() == (echo.endpoint, b"!")


async def test_over_ipv6(start_proxy: StartProxy, echo: UdpServer):
    proxy = await start_proxy(open=True, listen=(Endpoint.parse("[::]:0"),))
    async with associated(Endpoint.of("::1", proxy.endpoint.port), Endpoint.parse("[::]:0")) as client:
        assert client.relay.host == ip_address("::1")
        client.send(echo.endpoint, b"!")
        assert await client.receive() == (echo.endpoint, b"!")


async def test_behind_a_nat_the_client_is_told_what_the_operator_says(start_proxy: StartProxy):
    told = ip_address("203.0.113.5"), ip_address("2001:db8::5")
    proxy = await start_proxy(open=True, udp_address=told, listen=(Endpoint.parse("[::]:0"),))
    for reached, expected in (("127.0.0.1", told[0]), ("::1", told[1])):
        connection, code, bound = await ask(Endpoint.of(reached, proxy.endpoint.port))
        with connection:
            assert (code, bound.host) == (0, expected)
            assert bound.port


# -- whose they are, and where they may go --------------------------------------------------------------------------


async def test_nobody_else_can_use_the_association(open_proxy: RunningProxy, echo: UdpServer):
    async with associated(open_proxy.endpoint) as client:
        client.send(echo.endpoint, b"mine")
        await client.receive()
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as neighbour,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
        ):
            stranger.bind(("127.0.0.66", 0))
            for sock in (neighbour, stranger):
                sock.sendto(encode_udp(echo.endpoint, b"not mine"), (str(client.relay.host), client.relay.port))
        await eventually(lambda: dropped(open_proxy) == {"foreign": 2})
        assert echo.received == [b"mine"]
        assert await client.is_quiet()


async def test_a_stranger_who_is_first_does_not_become_the_client(open_proxy: RunningProxy, echo: UdpServer):
    async with associated(open_proxy.endpoint) as client:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.66", 0))
            stranger.sendto(encode_udp(echo.endpoint, b"first"), (str(client.relay.host), client.relay.port))
        await eventually(lambda: dropped(open_proxy) == {"foreign": 1})
        client.send(echo.endpoint, b"mine")
        assert await client.receive() == (echo.endpoint, b"mine")
        assert echo.received == [b"mine"]


async def test_a_port_that_was_announced_is_the_clients(open_proxy: RunningProxy, echo: UdpServer):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind((IPV4_ONLY, 0))
        port = holder.getsockname()[1]
    async with associated(open_proxy.endpoint, Endpoint.of(IPV4_ONLY, port), port) as client:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(encode_udp(echo.endpoint, b"other"), (str(client.relay.host), client.relay.port))
        client.send(echo.endpoint, b"mine")
        assert await client.receive() == (echo.endpoint, b"mine")
        assert echo.received == [b"mine"]


async def test_servers_that_were_not_asked_are_not_heard(open_proxy: RunningProxy, echo: UdpServer):
    async with associated(open_proxy.endpoint) as client:
        client.send(echo.endpoint, b"asked")
        await client.receive()
        relay = "127.0.0.1", echo.sources[0][1]
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as same_host,
        ):
            stranger.bind(("127.0.0.66", 0))
            stranger.sendto(b"unasked", relay)
            await eventually(lambda: dropped(open_proxy) == {"unasked": 1})
            same_host.bind((IPV4_ONLY, 0))
            same_host.sendto(b"from another port, as TFTP does", relay)
            source, payload = await client.receive()
            assert payload == b"from another port, as TFTP does"
            assert source == Endpoint.from_sockaddr(same_host.getsockname())


async def test_what_the_rules_deny_is_not_sent(start_proxy: StartProxy, echo: UdpServer):
    proxy = await start_proxy(open=True, deny=(ip_network("127.0.0.9/32"),))
    denied = UdpServer("127.0.0.9")
    try:
        async with associated(proxy.endpoint) as client:
            for destination in (
                denied.endpoint,
                Endpoint.of("::ffff:127.0.0.9", denied.endpoint.port),  # the same, spelt otherwise
                Endpoint.of("10.1.2.3", 53),  # not public
                Endpoint.of("255.255.255.255", 53),
                Endpoint.of(IPV4_ONLY, 0),
                proxy.endpoint,
            ):
                client.send(destination, b"denied")
            client.send(echo.endpoint, b"allowed")
            assert await client.receive() == (echo.endpoint, b"allowed")
            assert dropped(proxy) == {"denied": 6}
            assert denied.received == []
    finally:
        denied.close()


async def test_fragments_and_nonsense_are_dropped(open_proxy: RunningProxy, echo: UdpServer):
    whole = encode_udp(echo.endpoint, b"part")
    async with associated(open_proxy.endpoint) as client:
        for fragment in (1, 2, 0x83):
            client.send_raw(whole[:2] + bytes((fragment,)) + whole[3:])
        for nonsense in (b"", b"\0\0\0", whole[:9], b"\0\0\0\x07abc", b"\0\0\0\x03\x02..\0\x35"):
            client.send_raw(nonsense)
        client.send(echo.endpoint, b"whole")
        assert await client.receive() == (echo.endpoint, b"whole")
        assert dropped(open_proxy) == {"fragments": 3, "malformed": 5}
        assert echo.received == [b"whole"]


# -- ends and limits ------------------------------------------------------------------------------------------------


async def test_it_ends_with_its_connection(open_proxy: RunningProxy, echo: UdpServer):
    async with associated(open_proxy.endpoint) as client:
        client.send(echo.endpoint, b"1")
        await client.receive()
        await send(client.connection, b"what comes here means nothing")
        client.send(echo.endpoint, b"2")
        await client.receive()
        (listed,) = await asyncio.to_thread(udp_associations, open_proxy.state)
        assert listed["client"] == str(Endpoint.from_sockaddr(client.sock.getsockname())).replace("0.0.0.0", IPV4_ONLY)
        assert (listed["port"], listed["mobile"], listed["user"]) == (echo.sources[0][1], False, "")
        assert [listed[key] for key in ("sent", "received", "bytes_up", "bytes_down")] == [2, 2, 2, 2]
        client.connection.close()
        await eventually(lambda: associations(open_proxy) == 0)
        client.send(echo.endpoint, b"3")
        assert await client.is_quiet()
        assert echo.received == [b"1", b"2"]


async def test_one_that_is_idle_is_ended_and_its_client_told(start_proxy: StartProxy, echo: UdpServer):
    proxy = await start_proxy(open=True, udp_idle_s=0.2)
    loop = asyncio.get_running_loop()
    async with associated(proxy.endpoint) as client:
        for _ in range(4):
            await asyncio.sleep(0.1)
            client.send(echo.endpoint, b"!")
            await client.receive()
        last = loop.time()
        assert await receive(client.connection) == b""
        assert 0.15 < loop.time() - last < 1.5
    assert associations(proxy) == 0


@pytest.mark.parametrize("limit", ["udp_associations", "udp_associations_per_user"])
async def test_no_more_than_allowed_and_none_of_a_user_who_was_removed(start_proxy: StartProxy, limit: str):
    proxy = await start_proxy(limits=ProxyLimits(**{limit: 2}))
    await proxy.add_user("alice")
    await asyncio.to_thread(set_password, proxy.state, "alice", "secret")
    with contextlib.ExitStack() as stack:

        async def associate() -> tuple[socket.socket, int]:
            connection = stack.enter_context(await dial(proxy.endpoint))
            await send(connection, b"\x05\x01\x02" + b"\x01\x05alice\x06secret" + associate_request(NOTHING))
            assert await read_exactly(connection, 4) == b"\x05\x02\x01\x00"
            return connection, (await read_exactly(connection, 10))[1]

        first, second, third = [await associate() for _ in range(3)]
        assert [code for _, code in (first, second, third)] == [0, 0, 1]
        assert await read_all(third[0]) == b""
        second[0].close()
        await eventually(lambda: associations(proxy) == 1)
        fourth = await associate()
        assert fourth[1] == 0
        await asyncio.to_thread(remove_user, proxy.state, "alice")
        assert await read_all(first[0]) == b""
        assert await read_all(fourth[0]) == b""
        assert associations(proxy) == 0


async def test_without_permission_there_is_none(proxy: RunningProxy):
    connection = await dial(proxy.endpoint)
    with connection:
        await send(connection, b"\x05\x01\x00" + associate_request(NOTHING))
        assert await read_all(connection) == b"\x05\xff"
    assert associations(proxy) == 0


def test_one_address_of_each_family_can_be_told(tmp_path: Any):
    def config(*addresses: str) -> Iterator[str]:
        made = ProxyConfig(
            listen=(NOTHING,), state=tmp_path, udp_address=tuple(ip_address(address) for address in addresses)
        )
        return iter(map(str, made.udp_address))

    assert list(config("192.0.2.1", "2001:db8::1")) == ["192.0.2.1", "2001:db8::1"]
    with pytest.raises(ConfigurationError, match="several addresses of one IP version"):
        config("192.0.2.1", "192.0.2.2")
