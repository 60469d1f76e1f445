"""What is heard on the connections over a link, where they are many and few of them say anything."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from msocks.client.leg_signs import LegSigns
from msocks.client.link_path import LinkPath
from msocks.session.path_health import NEEDED_LEAST, PathHealth
from msocks.session.path_state import Means, PathState
from msocks.transport.reactor import Reactor
from msocks.values.link import Link, LinkState

_LEGS = 100
_SECOND_S = 1.0
_LATELY_S = 0.04


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """The near and far ends of a hundred connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        made = []
        for _ in range(_LEGS):
            near = stack.enter_context(socket.create_connection(listener.getsockname()))
            made.append((near, stack.enter_context(listener.accept()[0])))
        time.sleep(2 * _LATELY_S)  # so that their handshakes are no news
        yield made


@pytest.fixture
def path() -> LinkPath:
    """One whose connections were all looked at just now."""
    made = LinkPath(Link("wifi", 3, LinkState.UP))
    made.looked_at = time.monotonic()
    return made


def proven() -> PathHealth:
    health = PathHealth(time.monotonic() - _SECOND_S)
    health.on_heard(time.monotonic() - _SECOND_S / 2)
    assert health.state is PathState.ALIVE
    return health


def leave_unanswered(health: PathHealth, probes: int) -> None:
    for number in range(probes):
        health.on_probe_sent(time.monotonic() - _LATELY_S + number / 1000, number, Means.UDP)


@pytest.mark.parametrize("speaks", [0, 50, _LEGS - 1])
async def test_before_a_link_is_called_silent_all_its_connections_are_asked(
    pairs: list[tuple[socket.socket, socket.socket]], path: LinkPath, speaks: int
) -> None:
    signs, health, legs = LegSigns(Reactor(asyncio.get_running_loop())), proven(), [near for near, _ in pairs]
    leave_unanswered(health, NEEDED_LEAST)
    signs.listen(path, health, legs, None, time.monotonic())
    assert health.heard_at < time.monotonic() - _LATELY_S  # nobody has said anything
    pairs[speaks][1].send(b"a")
    signs.listen(path, health, legs, None, time.monotonic())
    assert health.heard_at > time.monotonic() - _LATELY_S


async def test_one_that_is_heard_again_and_again_is_found_among_many(
    pairs: list[tuple[socket.socket, socket.socket]], path: LinkPath
) -> None:
    signs, health, legs = LegSigns(Reactor(asyncio.get_running_loop())), proven(), [near for near, _ in pairs]
    heard = []
    for _ in range(10):
        pairs[83][1].send(b"a")
        path.looked_at = now = time.monotonic()
        signs.listen(path, health, legs, None, now)
        heard.append(health.heard_at > now - _LATELY_S)
        await asyncio.sleep(1.5 * _LATELY_S)
    # Not at first, as the sample does not reach that far, but before a hundred have had their turn; then each time.
    assert not heard[0]
    assert heard == sorted(heard)
    assert sum(heard) >= 7


def test_a_sample_takes_turns(path: LinkPath) -> None:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(socket.socket()) for _ in range(10)]
        assert path.sample(connections[:4], 4) == connections[:4]
        path.heard_on = connections[9]
        assert path.sample(connections, 4) == [connections[9], *connections[:4]]
        assert path.sample(connections, 4) == [connections[9], *connections[4:8]]
        path.heard_on = None
        assert path.sample(connections, 4) == [*connections[8:], *connections[:2]]
