"""Asks the proxy what has arrived, for sessions on whose legs ACKs do not tell: a middlebox sends them in its place.

Such a session's upstream is let go of when the proxy has said that it has it, and the proxy does the same with the
downstream: RECEIVED on a control channel, which goes from program to program, and its answer. Nothing is said where no
link has such a middlebox, and nothing new while nothing has come and nothing is awaited. As long as it is not known
whether a link has one, nothing is let go of for an ACK either; that takes a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from msocks.client.connection import Connection
from msocks.protocol.control import MAX_LISTED_SESSIONS, Received, ReceivedStream
from msocks.values.ids import SessionId

_LEAST_S, _MOST_S = 0.03, 0.25
_IDLE_S = 0.5
_NOTHING = (-1, False)


class Links(Protocol):
    """What is known of the links."""

    @property
    def acks_are_suspect(self) -> bool:
        """Whether one of them that can be used has such a middlebox, or may have one."""

    def is_split(self, link: str) -> bool:
        """Whether a middlebox on it ACKs in the proxy's place."""

    def is_doubtful(self, link: str) -> bool:
        """Whether that is not known yet."""


class Confirmations:
    """See the module."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connections: Callable[[], Iterable[Connection]],
        links: Links,
        say: Callable[[Received], float | None],
    ) -> None:
        """
        Args:
            loop: Keeps the time.
            connections: Those that live.
            links: Know which of them has such a middlebox.
            say: Tells the proxy, over the link that brings it soonest; how many seconds the answer takes, None where it
                could not be told.
        """
        self._loop = loop
        self._connections = connections
        self._links = links
        self._say = say
        self._told: dict[SessionId, tuple[int, bool]] = {}
        self._pause_s = _IDLE_S
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Some link may have a middlebox now, or a connection a leg on it."""
        if self._timer is None:
            self._timer = self._loop.call_later(_LEAST_S, self._look)

    def close(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        concerned = 0
        streams = []
        told, self._told = self._told, {}
        for connection in self._connections():
            stream, session = connection.stream, connection.session
            state = stream.received(), stream.at_eof
            suspect = self._note_link(connection)
            # The proxy waits for this side's word on a leg that was told of, and on one that such a leg hands over to.
            waited_for = connection.told_split or (stream.handing_over and session in told)
            if suspect or waited_for or stream.awaits_word:
                concerned += 1
                self._told[session] = state
            elif session not in told:
                continue  # or it is the last word
            if stream.awaits_word or told.get(session) != state:
                streams.append(ReceivedStream(session, connection.generation, *state, connection.told_split))
        if not concerned and not streams and not self._links.acks_are_suspect:
            return
        self._pause_s = min(2 * self._pause_s, _IDLE_S)
        for first in range(0, len(streams), MAX_LISTED_SESSIONS):
            takes_s = self._say(Received(tuple(streams[first : first + MAX_LISTED_SESSIONS])))
            if takes_s is None:
                self._told.update({stream.session: _NOTHING for stream in streams})
            else:
                self._pause_s = min(max(takes_s / 2, _LEAST_S), _MOST_S)
        self._timer = self._loop.call_later(self._pause_s, self._look)

    def _note_link(self, connection: Connection) -> bool:
        """Let the stream trust the live leg's ACKs, or not; whether they are suspect."""
        link = connection.link
        if connection.leg is None or link is None:
            return False
        split, doubtful = self._links.is_split(link), self._links.is_doubtful(link)
        connection.told_split = connection.told_split or split
        if split or doubtful:
            connection.stream.distrust()
        elif not connection.told_split:
            connection.stream.trust()
        return split or doubtful
