from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address

import pytest

from msocks.proxy.happy_eyeballs import ATTEMPT_DELAY_S, ConnectRace, interleave, most_telling
from msocks.transport.kernel import tcp_info
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Address

TCP_CLOSE = 7


def addresses(text: str) -> list[Address]:
    return [ip_address(each) for each in text.split()]


@pytest.fixture
async def reactor() -> AsyncIterator[Reactor]:
    made = Reactor(asyncio.get_running_loop())
    yield made
    made.close()


@contextmanager
def listening(host: str, port: int = 0) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as sock:
        yield sock


@contextmanager
def silent(host: str, port: int) -> Iterator[None]:
    """An address that lets SYNs vanish: a listener whose queue is full."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server((host, port), family=family, backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket(family))
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield


class Race:
    """A race and the time it took."""

    def __init__(self, reactor: Reactor, to: list[Address], port: int, unfit: frozenset[int] = frozenset()) -> None:
        """`unfit` are the numbers of the attempts whose preparation fails."""
        self._unfit = unfit
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._outcome: asyncio.Future[socket.socket | OSError] = self._loop.create_future()
        self._reactor = reactor
        self.prepared: list[tuple[int, Address, int]] = []  # family, and where to, in the order of the attempts
        self.race = ConnectRace(reactor, to, port, self._prepare, self._outcome.set_result)
        assert not self._outcome.done(), "the outcome came before the constructor had returned"

    def _prepare(self, sock: socket.socket, destination: tuple[Address, int]) -> None:
        assert tcp_info(sock).state == TCP_CLOSE, "the SYN is sent, and what it says cannot be changed any more"
        self.prepared.append((sock.family, *destination))
        if len(self.prepared) in self._unfit:
            raise OSError(errno.EADDRNOTAVAIL, "no local port is left")

    async def won_by(self) -> tuple[str, float]:
        outcome = await asyncio.wait_for(self._outcome, 3)
        took = self._loop.time() - self._started
        assert isinstance(outcome, socket.socket), outcome
        host = outcome.getpeername()[0]
        assert outcome.gettimeout() == 0.0
        self._reactor.unwatch(outcome.fileno())
        outcome.close()
        return host, took

    async def error(self) -> OSError:
        outcome = await asyncio.wait_for(self._outcome, 3)
        assert isinstance(outcome, OSError)
        return outcome


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("1.1.1.1", "1.1.1.1"),
        ("::a ::b 1.1.1.1", "::a 1.1.1.1 ::b"),
        ("1.1.1.1 1.1.1.2 ::a", "1.1.1.1 ::a 1.1.1.2"),
        ("::a ::b ::c 1.1.1.1 1.1.1.2", "::a 1.1.1.1 ::b 1.1.1.2 ::c"),
    ],
)
def test_the_families_take_turns_and_the_preferred_one_begins(given: str, expected: str):
    assert interleave(addresses(given)) == addresses(expected)


async def test_the_first_address_wins_when_it_answers(reactor: Reactor):
    with listening("127.0.0.2") as first, listening("127.0.0.3", first.getsockname()[1]):
        host, took = await Race(reactor, addresses("127.0.0.2 127.0.0.3"), first.getsockname()[1]).won_by()
    assert host == "127.0.0.2"
    assert took < ATTEMPT_DELAY_S


async def test_a_silent_address_costs_one_attempt_delay(reactor: Reactor):
    with listening("127.0.0.3") as live, silent("127.0.0.2", live.getsockname()[1]):
        host, took = await Race(reactor, addresses("127.0.0.2 127.0.0.3"), live.getsockname()[1]).won_by()
    assert host == "127.0.0.3"
    assert ATTEMPT_DELAY_S <= took < ATTEMPT_DELAY_S + 0.2


async def test_a_silent_ipv6_address_does_not_hide_the_ipv4_one(reactor: Reactor):
    with listening("127.0.0.1") as live, silent("::1", live.getsockname()[1]):
        host, took = await Race(reactor, interleave(addresses("::1 127.0.0.1")), live.getsockname()[1]).won_by()
    assert host == "127.0.0.1"
    assert ATTEMPT_DELAY_S <= took < ATTEMPT_DELAY_S + 0.2


async def test_a_refusal_starts_the_next_attempt_at_once(reactor: Reactor):
    with listening("127.0.0.4") as live:
        to = addresses("127.0.0.2 127.0.0.3 127.0.0.4")
        host, took = await Race(reactor, to, live.getsockname()[1]).won_by()
    assert host == "127.0.0.4"
    assert took < ATTEMPT_DELAY_S


async def test_every_socket_is_prepared_before_it_connects(reactor: Reactor):
    with listening("127.0.0.1") as live, silent("::1", live.getsockname()[1]):
        port = live.getsockname()[1]
        race = Race(reactor, interleave(addresses("::1 127.0.0.1")), port)
        await race.won_by()
    assert race.prepared == [
        (socket.AF_INET6, ip_address("::1"), port),
        (socket.AF_INET, ip_address("127.0.0.1"), port),
    ]


async def test_a_preparation_that_fails_costs_that_attempt_only(reactor: Reactor):
    with listening("127.0.0.2") as first, listening("127.0.0.3", first.getsockname()[1]):
        port = first.getsockname()[1]
        host, took = await Race(reactor, addresses("127.0.0.2 127.0.0.3"), port, frozenset({1})).won_by()
        error = await Race(reactor, addresses("127.0.0.2 127.0.0.3"), port, frozenset({1, 2})).error()
    assert host == "127.0.0.3"
    assert took < ATTEMPT_DELAY_S
    assert error.errno == errno.EADDRNOTAVAIL


async def test_attempts_under_way_go_on_while_the_next_one_fails(reactor: Reactor):
    """The first is silent for now, the second refuses; the first gets room in its queue and wins after all."""
    with listening("127.0.0.2") as free:
        port = free.getsockname()[1]
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.2", port), backlog=0))
        filler = stack.enter_context(socket.create_connection(("127.0.0.2", port)))
        race = Race(reactor, addresses("127.0.0.2 127.0.0.3"), port)
        await asyncio.sleep(ATTEMPT_DELAY_S + 0.1)
        stack.enter_context(full.accept()[0])
        host, took = await race.won_by()
        assert filler.getpeername()[1] == port
    assert host == "127.0.0.2"
    assert took > ATTEMPT_DELAY_S


async def test_when_all_fail_the_most_telling_error_is_given(reactor: Reactor):
    assert (await Race(reactor, addresses("127.0.0.2 127.0.0.3"), 1).error()).errno == errno.ECONNREFUSED


async def test_an_address_that_fails_at_once_is_told_like_any_other(reactor: Reactor):
    # The limited broadcast address is none that TCP connects to.
    assert (await Race(reactor, addresses("255.255.255.255"), 9).error()).errno in (
        errno.ENETUNREACH,
        errno.EACCES,
        errno.EINVAL,
    )


async def test_a_cancelled_race_closes_its_sockets_and_tells_nobody(reactor: Reactor):
    with listening("127.0.0.3") as live, silent("127.0.0.2", live.getsockname()[1]):
        race = Race(reactor, addresses("127.0.0.2 127.0.0.3"), live.getsockname()[1])
        race.race.cancel()
        await asyncio.sleep(ATTEMPT_DELAY_S + 0.1)
        assert not race._outcome.done()


def test_refused_says_more_than_timed_out_and_that_more_than_unreachable():
    def told(*numbers: int) -> int | None:
        return most_telling([OSError(number, "") for number in numbers]).errno

    assert told(errno.ENETUNREACH, errno.ETIMEDOUT, errno.ECONNREFUSED) == errno.ECONNREFUSED
    assert told(errno.ENETUNREACH, errno.EHOSTUNREACH) == errno.EHOSTUNREACH
    assert told(errno.EINVAL, errno.ENETUNREACH) == errno.ENETUNREACH
