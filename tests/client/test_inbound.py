"""What a node says of its listeners, and when one is over; the proxy is played by the test."""

from __future__ import annotations

import asyncio
import errno
import itertools
import random
from collections.abc import Callable

import pytest

from msocks.client import inbound
from msocks.client.inbound import Inbound, Wanted
from msocks.errors import AuthenticationError, ListenError
from msocks.protocol.control import ControlMessage
from msocks.protocol.inbound import Incoming, Listen, Listening, ListenStatus, Unlisten
from msocks.values.endpoint import Endpoint
from msocks.values.ids import SessionId

BOUND = Endpoint.of("198.51.100.7", 8022)


class Proxy:
    """Notes what it is told, and over which link."""

    def __init__(self) -> None:
        self.heard: list[tuple[str | None, ControlMessage]] = []
        self.changes = 0
        self.incoming: list[Incoming] = []
        self.inbound = Inbound(self)

    def send(self, message: ControlMessage) -> str | None:
        self.heard.append((None, message))
        return "wifi"

    def send_over(self, link: str, message: ControlMessage) -> None:
        self.heard.append((link, message))

    def listen(self, port: int = 0) -> Wanted:
        return self.inbound.listen(port, self.incoming.append, self.changed)

    def open(self, wanted: Wanted) -> None:
        self.inbound.on_message(Listening(wanted.number, ListenStatus.OPEN, BOUND))

    def refuse(self, wanted: Wanted, status: ListenStatus, text: str = "") -> None:
        self.inbound.on_message(Listening(wanted.number, status, None, text))

    def changed(self) -> None:
        self.changes += 1


@pytest.fixture
async def proxy() -> Proxy:
    return Proxy()


async def test_each_channel_asks_again_for_the_port_that_it_has(proxy: Proxy):
    wanted = proxy.listen()
    proxy.open(wanted)
    proxy.open(wanted)  # over the other channel
    proxy.inbound.on_channel("lte")
    assert proxy.heard == [(None, Listen(1, 0)), ("lte", Listen(1, BOUND.port))]
    assert (wanted.bound, wanted.opened.is_set(), proxy.changes) == (BOUND, True, 1)


@pytest.mark.parametrize(
    ("status", "number"),
    [(ListenStatus.NOT_ALLOWED, errno.EACCES), (ListenStatus.IN_USE, errno.EADDRINUSE), (ListenStatus.LIMIT, None)],
)
async def test_what_is_refused_at_first_is_an_error(proxy: Proxy, status: ListenStatus, number: int | None):
    wanted = proxy.listen(22)
    proxy.refuse(wanted, status, "not that port; use another")
    error = wanted.error
    assert isinstance(error, ListenError)
    assert (error.what, error.remedy) == ("the proxy does not listen: not that port", "use another")
    assert error.errno == number
    proxy.inbound.on_channel("lte")
    assert len(proxy.heard) == 1


async def test_a_port_that_it_had_is_asked_for_until_it_is_free(proxy: Proxy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inbound, "_RETRY_S", 0.01)
    wanted = proxy.listen(BOUND.port)
    proxy.open(wanted)
    proxy.refuse(wanted, ListenStatus.IN_USE)
    await until(lambda: len(proxy.heard) == 2)
    assert proxy.heard[1] == (None, Listen(1, BOUND.port))
    proxy.refuse(wanted, ListenStatus.CLOSED, "a newer client of this user has taken the port")
    assert wanted.error is not None
    assert not proxy.inbound.listeners


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_peer_that_is_announced_twice_is_one(proxy: Proxy):
    wanted = proxy.listen()
    proxy.open(wanted)
    ids = [SessionId(random.randbytes(16)) for _ in range(2)]
    for session, _ in itertools.product(ids, range(2)):
        proxy.inbound.on_message(Incoming(wanted.number, session, Endpoint.of("203.0.113.9", 4711), BOUND))
    assert [each.session for each in proxy.incoming] == ids


async def test_a_closed_listener_that_the_proxy_still_has_is_closed_again(proxy: Proxy):
    wanted = proxy.listen()
    proxy.inbound.close(wanted)
    proxy.open(wanted)
    proxy.refuse(wanted, ListenStatus.IN_USE)
    assert proxy.heard == [(None, Listen(1)), (None, Unlisten(1)), (None, Unlisten(1))]
    assert proxy.changes == 0


async def test_a_user_that_is_refused_need_not_wait(proxy: Proxy):
    standing = proxy.listen(1)
    proxy.open(standing)
    waiting = proxy.listen(2)
    proxy.inbound.on_refused(AuthenticationError("no such user"))
    assert isinstance(waiting.error, AuthenticationError)
    assert standing.error is None
    late = proxy.listen(3)
    await until(lambda: late.error is waiting.error)
    proxy.inbound.on_channel("wifi")
    hopeful = proxy.listen(4)
    await asyncio.sleep(0.01)
    assert hopeful.error is None


async def test_a_listener_for_one_peer_is_over_without_a_word_that_would_reset_it(proxy: Proxy):
    peer = Endpoint.of("203.0.113.9", 0)
    wanted = proxy.inbound.listen(0, proxy.incoming.append, proxy.changed, once=True, peer=peer)
    proxy.open(wanted)
    proxy.inbound.on_channel("lte")
    news = Incoming(wanted.number, SessionId(random.randbytes(16)), Endpoint.of("203.0.113.9", 4711), BOUND)
    for _ in range(2):
        proxy.inbound.on_message(news)
    proxy.inbound.close(wanted)
    asked = Listen(1, 0, True, peer)
    assert proxy.heard == [(None, asked), ("lte", asked)]
    assert proxy.incoming == [news]
