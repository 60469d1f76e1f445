"""BIND of plain SOCKS5 clients: both replies, who may connect, and what ends it. Peers are real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

import pytest
from tests.proxy.conftest import RunningProxy, StartProxy, eventually
from tests.proxy.mobile_node import dial, read_all, read_exactly, receive, reset, send

from msocks.protocol.socks5_wire import encode_address
from msocks.proxy.config import ProxyLimits
from msocks.store.administration import remove_user, set_password
from msocks.values.endpoint import Endpoint

ANYBODY = Endpoint.parse("0.0.0.0:0")
PEER, STRANGER = "127.0.0.2", "127.0.0.3"


@dataclass
class Binding:
    """A client that has asked for BIND."""

    connection: socket.socket
    code: int
    bound: Endpoint

    async def reply(self) -> tuple[int, Endpoint]:
        """The next reply."""
        head = await read_exactly(self.connection, 4)
        packed = await read_exactly(self.connection, 4 if head[3] == 1 else 16)
        (port,) = struct.unpack(">H", await read_exactly(self.connection, 2))
        return head[1], Endpoint.of(str(ip_address(packed)), port)


@contextlib.asynccontextmanager
async def bound(
    proxy: RunningProxy, peer: Endpoint = ANYBODY, password: str | None = None, early: bytes = b""
) -> AsyncIterator[Binding]:
    with await dial(proxy.endpoint) as connection:
        if password is None:
            await send(connection, b"\x05\x01\x00")
            assert await read_exactly(connection, 2) == b"\x05\x00"
        else:
            await send(connection, b"\x05\x01\x02\x01\x05alice" + bytes((len(password),)) + password.encode())
            assert await read_exactly(connection, 4) == b"\x05\x02\x01\x00"
        await send(connection, b"\x05\x02\x00" + encode_address(peer) + early)
        binding = Binding(connection, -1, ANYBODY)
        binding.code, binding.bound = await binding.reply()
        yield binding


async def call(target: Endpoint, source: str = PEER) -> socket.socket:
    """A peer's connection from an address of its own."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind((source, 0))
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", target.port)), 3)
    except BaseException:
        sock.close()
        raise
    return sock


def listeners(proxy: RunningProxy) -> int:
    assert proxy.proxy._core is not None
    return len(proxy.proxy._core.inbound)


async def refuses(target: Endpoint) -> bool:
    """Whether nobody listens there any more."""
    try:
        (await call(target)).close()
    except ConnectionRefusedError:
        return True
    return False


async def is_reset(target: Endpoint, source: str = PEER) -> bool:
    """Whether who connects there is reset, be it before it is told that it stands."""
    with pytest.raises(ConnectionResetError), await call(target, source) as peer:
        await receive(peer)
    return True


async def test_the_peer_is_told_and_bytes_go_both_ways(open_proxy: RunningProxy):
    async with bound(open_proxy) as binding:
        assert (binding.code, str(binding.bound.host)) == (0, "127.0.0.1")
        with await call(binding.bound) as peer:
            await send(peer, b"220 first\r\n")
            assert await binding.reply() == (0, Endpoint.from_sockaddr(peer.getsockname()))
            assert await read_exactly(binding.connection, 11) == b"220 first\r\n"
            await send(binding.connection, bytes(300_000))
            binding.connection.shutdown(socket.SHUT_WR)
            assert await read_all(peer) == bytes(300_000)
            await send(peer, b"the rest")
            peer.shutdown(socket.SHUT_WR)
            assert await read_all(binding.connection) == b"the rest"
        assert await refuses(binding.bound)
    assert listeners(open_proxy) == 0


async def test_over_ipv6(start_proxy: StartProxy):
    proxy = await start_proxy(open=True, listen=(Endpoint.parse("[::1]:0"),))
    async with bound(proxy, Endpoint.of("::1", 0)) as binding:
        assert (binding.code, str(binding.bound.host)) == (0, "::1")
        with await dial(binding.bound) as peer:
            assert await binding.reply() == (0, Endpoint.from_sockaddr(peer.getsockname()))
            await send(peer, b"220 first")
            assert await read_exactly(binding.connection, 9) == b"220 first"
            await send(binding.connection, b"answer")
            assert await read_exactly(peer, 6) == b"answer"


async def test_what_the_client_sends_early_reaches_the_peer(open_proxy: RunningProxy):
    async with bound(open_proxy, early=b"early, ") as binding:
        await send(binding.connection, b"and more")
        with await call(binding.bound) as peer:
            await binding.reply()
            assert await read_exactly(peer, 15) == b"early, and more"


async def test_only_the_named_peer_may_connect(open_proxy: RunningProxy):
    async with bound(open_proxy, Endpoint.of(PEER, 21)) as binding:
        assert await is_reset(binding.bound, STRANGER)
        with await call(binding.bound) as peer:
            assert await binding.reply() == (0, Endpoint.from_sockaddr(peer.getsockname()))


async def test_a_peer_may_be_named_by_its_name(open_proxy: RunningProxy):
    async with bound(open_proxy, Endpoint.of("localhost", 0)) as binding:
        with await call(binding.bound, "127.0.0.1"):
            code, _ = await binding.reply()
            assert code == 0


async def test_a_peer_that_the_rules_deny_is_refused(start_proxy: StartProxy):
    proxy = await start_proxy(open=True, deny=(ip_network(f"{PEER}/32"),))
    async with bound(proxy, Endpoint.of(PEER, 0)) as named:
        assert named.code == 2
    async with bound(proxy) as anybody:
        assert await is_reset(anybody.bound)
        with await call(anybody.bound, STRANGER):
            assert (await anybody.reply())[0] == 0


async def test_nobody_comes_in_time(start_proxy: StartProxy):
    proxy = await start_proxy(open=True, bind_timeout_s=0.2)
    async with bound(proxy) as binding:
        assert (await binding.reply())[0] == 6
        assert await read_all(binding.connection) == b""
        assert await refuses(binding.bound)


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
async def test_a_client_that_leaves_takes_the_port_with_it(open_proxy: RunningProxy, leave):
    async with bound(open_proxy) as binding:
        assert not await asyncio.sleep(0, listeners(open_proxy) == 0)
        leave(binding.connection)
        await eventually(lambda: listeners(open_proxy) == 0)
        assert await refuses(binding.bound)


async def test_listeners_of_a_user_are_counted(start_proxy: StartProxy):
    proxy = await start_proxy(limits=ProxyLimits(listeners_per_user=1))
    await proxy.add_user("alice")
    await asyncio.to_thread(set_password, proxy.state, "alice", "secret")
    async with bound(proxy, password="secret") as first:
        assert first.code == 0
        async with bound(proxy, password="secret") as second:
            assert second.code == 1
        with await call(first.bound):
            await first.reply()
        async with bound(proxy, password="secret") as third:
            assert third.code == 0


async def test_a_user_who_is_removed_loses_what_he_waits_for(proxy: RunningProxy):
    await proxy.add_user("alice")
    await asyncio.to_thread(set_password, proxy.state, "alice", "secret")
    async with bound(proxy, password="secret") as binding:
        await asyncio.to_thread(remove_user, proxy.state, "alice")
        assert (await binding.reply())[0] == 2
        assert await refuses(binding.bound)


async def test_sessions_of_a_user_are_counted(start_proxy: StartProxy):
    proxy = await start_proxy(open=True, limits=ProxyLimits(sessions=1))
    async with bound(proxy) as first, bound(proxy) as second:
        with await call(first.bound):
            assert (await first.reply())[0] == 0
            assert await is_reset(second.bound)
            assert (await second.reply())[0] == 1


async def test_the_operator_may_switch_it_off(start_proxy: StartProxy):
    proxy = await start_proxy(open=True, bind=False)
    async with bound(proxy) as binding:
        assert binding.code == 2


async def test_the_operator_says_where_peers_find_it(start_proxy: StartProxy):
    proxy = await start_proxy(open=True, inbound_address=(ip_address("192.0.2.7"),))
    async with bound(proxy) as binding:
        assert str(binding.bound.host) == "192.0.2.7"
        with await call(binding.bound):
            assert (await binding.reply())[0] == 0


async def test_the_proxy_stops(start_proxy: StartProxy):
    proxy = await start_proxy(open=True)
    async with bound(proxy) as binding:
        await proxy.proxy.stop()
        assert (await binding.reply())[0] == 1
