"""Spare legs over real TCP connections on the loopback: when one is opened, taken, replaced and let go."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address

import pytest

from msocks.client import spare_legs
from msocks.client.spare_legs import SpareLegs
from msocks.transport.reactor import Reactor
from msocks.values.link import Link, LinkState


class World:
    """A listener in the proxy's place, and the spares that are dialled to it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.reactor = Reactor(asyncio.get_running_loop())
        self.dialled: list[str] = []
        self.refusals = 0
        self.spares = SpareLegs(self.reactor, self.dial, lambda: ((), ()))

    async def dial(self, link: str) -> socket.socket:
        self.dialled.append(link)
        if self.refusals:
            self.refusals -= 1
            raise ConnectionRefusedError
        sock = socket.create_connection(self.listener.getsockname())
        sock.setblocking(False)
        return sock

    async def accept(self) -> socket.socket:
        accepted, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(self.listener), 5)
        await asyncio.sleep(0.05)  # the other end learns that it stands
        return accepted


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    made = World()
    try:
        yield made
    finally:
        made.spares.close()
        made.reactor.close()
        made.listener.close()


def link(name: str, address: str = "127.0.0.1") -> Link:
    return Link(name, 1, LinkState.UP, addresses=(IPv4Address(address),))


def is_closed(sock: socket.socket) -> bool:
    sock.settimeout(5)
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


async def test_one_is_opened_and_taken_once() -> None:
    async with world() as made:
        made.spares.keep(["lte"], ["wifi", "lte"])
        accepted = await made.accept()
        taken = made.spares.take(link("lte"))
        assert taken is not None
        assert taken.getsockname() == accepted.getpeername()
        assert made.spares.take(link("lte")) is None
        assert made.spares.take(link("wifi")) is None
        taken.close()
        accepted.close()
        assert made.dialled == ["lte"]


async def test_one_that_the_proxy_closes_is_replaced_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare_legs, "_AGAIN_MOST_S", 0.1)
    async with world() as made:
        made.spares.keep(["lte"], ["lte"])
        (await made.accept()).close()
        await asyncio.sleep(0.02)
        assert made.dialled == ["lte"]
        second = await made.accept()
        taken = made.spares.take(link("lte"))
        assert taken is not None
        assert taken.getsockname() == second.getpeername()
        taken.close()
        second.close()


async def test_one_that_a_dying_proxy_has_closed_is_replaced_when_the_next_is_there() -> None:
    async with world() as made:
        made.spares.keep(["lte"], ["lte"])
        (await made.accept()).close()
        await asyncio.sleep(0.1)
        assert made.dialled == ["lte"]
        made.spares.retry()
        made.spares.retry()  # it says so over each link
        with await made.accept() as second:
            taken = made.spares.take(link("lte"))
            assert taken is not None
            assert taken.getsockname() == second.getpeername()
            taken.close()
        assert made.dialled == ["lte", "lte"]


async def test_one_over_a_link_in_use_stays_and_is_not_replaced() -> None:
    async with world() as made:
        made.spares.keep(["lte"], ["lte"])
        accepted = await made.accept()
        made.spares.keep([], ["lte"])
        accepted.close()
        await asyncio.sleep(0.1)
        assert made.dialled == ["lte"]
        assert made.spares.take(link("lte")) is None


async def test_one_over_a_link_that_is_gone_is_closed() -> None:
    async with world() as made:
        made.spares.keep(["lte"], ["lte"])
        with await made.accept() as accepted:
            made.spares.keep(["wifi"], ["wifi"])
            assert is_closed(accepted)
        (await made.accept()).close()


async def test_one_from_an_address_that_has_left_the_link_is_not_used() -> None:
    async with world() as made:
        made.spares.keep(["lte"], ["lte"])
        with await made.accept() as accepted:
            assert made.spares.take(link("lte", "192.0.2.7")) is None
            assert is_closed(accepted)


async def test_a_refused_one_is_tried_again_after_a_pause() -> None:
    async with world() as made:
        made.refusals = 1
        made.spares.keep(["lte"], ["lte"])
        await asyncio.sleep(0.1)
        assert made.dialled == ["lte"]
        (await made.accept()).close()
        assert made.dialled[:2] == ["lte", "lte"]


async def test_one_is_replaced_before_the_proxy_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare_legs, "_RENEW_S", 0.1)
    async with world() as made:
        made.spares.keep(["lte"], ["lte"])
        with await made.accept() as first, await made.accept() as second:
            await asyncio.sleep(0.01)
            assert is_closed(first)
            taken = made.spares.take(link("lte"))
            assert taken is not None
            assert taken.getsockname() == second.getpeername()
            taken.close()


async def test_there_are_not_many_of_them() -> None:
    async with world() as made:
        names = [f"eth{number}" for number in range(10)]
        made.spares.keep(names, names)
        await asyncio.sleep(0.05)
        assert sorted(made.dialled) == names[:4]
