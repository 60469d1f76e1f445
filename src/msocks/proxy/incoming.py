"""One accepted TCP connection until somebody takes it over: its first bytes tell who shall speak with it."""

from __future__ import annotations

import select
import socket
from dataclasses import dataclass
from typing import Any, Protocol

from msocks.protocol.greeting import Announcement, classify
from msocks.proxy.admission import Admission, Source, source_of
from msocks.transport.deadlines import Deadlines
from msocks.transport.kernel import reset_on_close
from msocks.transport.reactor import FAILED, Reactor
from msocks.values.endpoint import Endpoint

# More than any request; what a client sends behind it waits in the kernel.
_READ_BYTES = 4096
_CLOSING = FAILED | select.EPOLLRDHUP
# So long a refused client may take to read why. RFC 1928 section 6 allows 10 s.
_LINGER_S = 3.0
_LINGERING = 1024


class Speaker(Protocol):
    """Who speaks with a connection; one for each thing that is spoken on the port."""

    @property
    def wants_data(self) -> bool:
        """Whether bytes shall be read; while they are not, only a failure of the connection is told."""

    @property
    def gives_up_at_eof(self) -> bool:
        """Whether the client is lost when it ends its direction while no data is wanted."""

    def receive(self, data: bytes) -> None:
        """Bytes have come, at least one."""

    def lost(self) -> None:
        """The connection is gone: it failed, was closed by the client, or its time was up. The socket is closed."""


class SpeakerMaker(Protocol):
    """Makes the speaker that the first bytes announce."""

    def make_speaker(self, announcement: Announcement, incoming: Incoming) -> Speaker | None:
        """The speaker; None where the connection has been taken over or closed."""


@dataclass(frozen=True, slots=True)
class Reception:
    """What all accepted connections share."""

    reactor: Reactor
    admission: Admission
    lingering: Deadlines[Incoming]
    speakers: SpeakerMaker


def new_lingering(reactor: Reactor) -> Deadlines[Incoming]:
    """The list of connections that have been told their last word."""
    return Deadlines(reactor.loop, _LINGER_S, Incoming.close)


class Incoming:
    """See the module. `sock` is connected and non-blocking. Implements `msocks.proxy.admission.HalfOpen`."""

    __slots__ = ("_admitted", "_closed", "_first", "_lingers", "_reception", "_speaker", "sock", "sockaddr", "source")

    def __init__(self, reception: Reception, sock: socket.socket, sockaddr: tuple[Any, ...]) -> None:
        self.sock = sock
        self.sockaddr = sockaddr
        self.source: Source = source_of(sockaddr)
        self._reception = reception
        self._first = b""
        self._speaker: Speaker | None = None
        self._admitted = False  # it counts as half-open
        self._closed = False  # or given away
        self._lingers = False

    @property
    def peer(self) -> Endpoint:
        """Where the connection comes from."""
        return Endpoint.from_sockaddr(self.sockaddr)

    def begin(self) -> None:
        """Wait for the first bytes."""
        self._reception.admission.enter(self)
        self._admitted = True
        self._reception.reactor.watch(self.sock.fileno(), self._on_events)

    # -- for the speaker --------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send a few bytes of a handshake: a fresh connection takes them whole; one that does not is closed."""
        try:
            whole = self.sock.send(data) == len(data)
        except OSError:
            whole = False
        if not whole:
            self.abandon()

    def established(self) -> None:
        """The client has said what it wants: no handshake deadline any more."""
        if self._admitted:
            self._admitted = False
            self._reception.admission.leave(self)

    def resume(self) -> None:
        """Read on: the speaker wants data again."""
        self._on_events(_CLOSING)

    def give_away(self) -> socket.socket:
        """Hand the socket over. It is still watched, so that the new owner's `watch` takes it without a gap."""
        self.established()
        self._closed = True
        self._speaker = None
        return self.sock

    def take_back(self) -> None:
        """The owner of the socket wants nothing more of it but to say a last word: `answer_and_close` comes next."""
        self._closed = False
        self._reception.reactor.watch(self.sock.fileno(), self._on_events)

    def discard_given(self) -> None:
        """Close the socket that was given away, with RST: nobody took it."""
        if self.sock.fileno() >= 0:
            self._reception.reactor.unwatch(self.sock.fileno())
            reset_on_close(self.sock)
            self.sock.close()

    def answer_and_close(self, data: bytes) -> None:
        """Send the last word, so that it arrives although the client may still be sending: then close."""
        if self._closed or self._lingers:
            return
        try:
            self.sock.send(data)
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self._reception.admission.leave(self)
        self._speaker = None
        self._lingers = True
        lingering = self._reception.lingering
        if len(lingering) >= _LINGERING and (oldest := lingering.oldest()) is not None:
            oldest.close()
        lingering.add(self)
        # A close() with bytes unread would send an RST, which may destroy the answer on its way.
        self._on_events(_CLOSING)

    def close(self) -> None:
        """Close the connection; the speaker is not told."""
        if self._closed:
            return
        self._closed = True
        self._speaker = None
        self._reception.admission.leave(self)
        self._reception.lingering.discard(self)
        self._reception.reactor.unwatch(self.sock.fileno())
        self.sock.close()

    # -- HalfOpen ---------------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Close the connection and tell the speaker."""
        speaker = self._speaker
        self.close()
        if speaker is not None:
            speaker.lost()

    # -- bytes ------------------------------------------------------------------------------------------------------

    def _on_events(self, events: int) -> None:
        while not self._closed:
            speaker = self._speaker
            if speaker is not None and not speaker.wants_data:
                failed = events & FAILED and self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if failed or (events & select.EPOLLRDHUP and speaker.gives_up_at_eof and self._is_at_eof()):
                    self.abandon()
                return
            try:
                data = self.sock.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.abandon()
                return
            if speaker is not None:
                speaker.receive(data)
            elif not self._lingers:
                self._take_first(data)
            if len(data) < _READ_BYTES and not events & _CLOSING:
                return  # read empty; the next byte makes the next event

    def _is_at_eof(self) -> bool:
        try:
            return not self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _take_first(self, data: bytes) -> None:
        self._first += data
        announcement = classify(self._first)
        if announcement is Announcement.UNDECIDED:
            return
        first, self._first = self._first, b""
        self._speaker = self._reception.speakers.make_speaker(announcement, self)
        if self._speaker is not None:
            self._speaker.receive(first)
        else:
            self.close()
