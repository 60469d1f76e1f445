"""CLOSE, until the proxy has closed the session: the test plays the proxy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
from tests.client.authority import OwnAuthority

from msocks.client import session_closer
from msocks.client.session_closer import SessionCloser
from msocks.protocol.leg import Close, CloseMode, LegReply, LegStatus
from msocks.protocol.leg_reply_codec import encode_reply
from msocks.protocol.leg_request_codec import LegRequestDecoder
from msocks.values.ids import SessionId

SESSION = SessionId(b"s" * 16)
_MAC_BYTES = 32


class Proxy(OwnAuthority):
    """Answers one CLOSE after the other as `answers` say; None: not at all. Is the way to itself, and its authority."""

    usable_links = ("wifi", "lte")

    def __init__(self, *answers: LegReply | None) -> None:
        super().__init__()
        self.requests: list[Close] = []
        self.links: list[str] = []
        self._answers = list(answers)
        self._serving: set[asyncio.Task[None]] = set()

    async def dial(self, link: str) -> socket.socket:
        self.links.append(link)
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        task = asyncio.ensure_future(self._serve(far))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        return near

    async def _serve(self, sock: socket.socket) -> None:
        loop, decoder, heard = asyncio.get_running_loop(), LegRequestDecoder(), b""
        with sock:
            while decoder.bytes_needed:
                data = await loop.sock_recv(sock, decoder.bytes_needed)
                heard += data
                signed = decoder.receive(data)
            assert signed is not None
            assert isinstance(signed.request, Close)
            self.requests.append(signed.request)
            answer = self._answers.pop(0)
            if answer is not None:
                await loop.sock_sendall(sock, encode_reply(answer, heard[-_MAC_BYTES:], self.key_down))


async def told(proxy: Proxy, start: Callable[[SessionCloser], None]) -> None:
    """Begin, and wait until nothing is under way."""
    closer = SessionCloser(proxy, asyncio.get_running_loop())
    start(closer)
    await asyncio.wait_for(closer.drain(10), 5)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_closer, "_RETRY_FIRST_S", 0.01)


@pytest.mark.parametrize(
    "status", [LegStatus.OK, LegStatus.UNKNOWN_SESSION, LegStatus.ENDED_RESET, LegStatus.BAD_OFFSETS]
)
async def test_a_session_that_is_over_needs_no_other_word(status: LegStatus) -> None:
    proxy = Proxy(LegReply(status=status, proxy_ms=77))
    await told(proxy, lambda closer: closer.close(SESSION, 3))
    (request,) = proxy.requests
    assert (request.session, request.generation, request.mode) == (SESSION, 3, CloseMode.RESET)
    assert proxy.times == [77]


@pytest.mark.parametrize("status", [LegStatus.REPLAYED, LegStatus.EXPIRED, LegStatus.BUSY, LegStatus.LIMIT])
async def test_a_refusal_that_invites_another_attempt_gets_one(status: LegStatus) -> None:
    proxy = Proxy(LegReply(status=status), LegReply(status=status), LegReply(status=LegStatus.OK))
    await told(proxy, lambda closer: closer.close(SESSION, 3, up_end=40))
    assert [request.leg_number for request in proxy.requests] == [1, 2, 3]
    assert {(request.generation, request.mode, request.up_fin_at) for request in proxy.requests} == {
        (3, CloseMode.GRACEFUL, 40)
    }
    assert proxy.links == ["wifi", "lte", "wifi"]


async def test_a_stale_generation_is_followed_by_that_of_the_proxy() -> None:
    """Else a session whose leg was accepted, and lost before anybody heard of it, would stay for its detach grace."""
    proxy = Proxy(LegReply(status=LegStatus.STALE_GENERATION, generation=9), LegReply(status=LegStatus.OK))
    await told(proxy, lambda closer: closer.close(SESSION, 3))
    assert [request.generation for request in proxy.requests] == [3, 9]


async def test_without_an_answer_it_is_said_again() -> None:
    proxy = Proxy(None, LegReply(status=LegStatus.OK))
    await told(proxy, lambda closer: closer.close(SESSION, 3))
    assert len(proxy.requests) == 2
