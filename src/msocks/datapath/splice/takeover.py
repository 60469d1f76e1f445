"""Takes one mobile leg over from the kernel, and at the first one the server leg as well.

The order leaves no gap. The entry and its flows are installed while the kernel's sockets still answer. Then the mobile
leg's socket writes the reply: the egress hook sees it leave, notes where the numbers of the leg stand, and from that
instant the leg is spliced. What the kernel had acknowledged until then lies in the socket, and is read from there. The
sockets vanish without a word. The server has not heard an ACK of its SYN yet: the egress hook has kept it back, and the
mobile's first word is the one that ends the handshake.
"""

from __future__ import annotations

import ctypes
import socket
import time
from typing import Protocol

from msocks.datapath.interface import Attachment
from msocks.datapath.splice.entries import Side, fill_mobile_leg
from msocks.datapath.splice.host import SpliceHost
from msocks.datapath.splice.layout import NO_FIN, SERVER, LegFlag, LegState, Session, SessionFlag
from msocks.datapath.splice.libbpf import lib
from msocks.datapath.splice.rebuild import unheard, vanish
from msocks.datapath.splice.residual import LEAST_S, Residual
from msocks.datapath.splice.segments import FIN, PSH
from msocks.datapath.splice.speech import largest_payload, say
from msocks.transport.kernel import bytes_unread

_NOT_YET_S = 0.001  # the kernel has not sent the reply at once: its pacing, or a full queue
_NEVER_S = 5.0
_MOST_COPIED_BYTES = 1 << 20
_SAFE_SEGMENT = 1220  # fits every IPv6 path (RFC 8200 section 5)


class TakeoverOwner(Protocol):
    """Who is told what becomes of a takeover."""

    def on_early(self, begin: int, early: bytes) -> None:
        """There are upstream bytes that nobody but this host has any more, from offset `begin` on; told before
        `on_spliced`.
        """

    def on_live(self, takeover: Takeover) -> None:
        """A later leg stands; the server is about to hear where it begins."""

    def on_spliced(self, takeover: Takeover) -> None:
        """The sockets have vanished; perhaps within `begin`."""

    def on_leg_lost(self, takeover: Takeover) -> None:
        """The leg came to nothing, and the server's socket is as it was; not within `begin`."""


class Takeover:
    """One mobile leg from its reply on, until that is acknowledged.

    Attributes:
        number: Of the leg in the session's entry, 1 or 2.
        old_number: Of the one whose place it takes; 0 for none.
        generation: Of the leg, once it is known.
    """

    __slots__ = (
        "_attachment",
        "_deadline",
        "_flags",
        "_host",
        "_offered",
        "_owes_ack",
        "_owes_fin",
        "_owner",
        "_residual",
        "_resumable",
        "_said",
        "_said_from",
        "_server",
        "_session",
        "_unheard",
        "generation",
        "number",
        "old_number",
    )

    def __init__(
        self,
        host: SpliceHost,
        session: Session,
        number: int,
        owner: TakeoverOwner | None,
        *,
        resumable: bool,
        old_number: int = 0,
    ) -> None:
        """`owner` may be left out for a leg that carries already."""
        self.number = number
        self.old_number = old_number
        self.generation = 0
        self._host = host
        self._session = session
        self._owner = owner
        self._resumable = resumable
        self._unheard = False  # something that was said before the reply, by the mobile
        self._offered: int | None = None  # where it is not what stands in the entry
        self._owes_fin = False
        self._owes_ack = False
        self._said: bytes | None = None  # as long as nobody has heard it
        self._residual: Residual | None = None  # of that, where it has to be said again
        self._server: socket.socket | None = None
        self._attachment: Attachment | None = None

    def fill(self, side: Side, attachment: Attachment) -> int:
        """Fill in the leg's entry; returns how many bytes of the stream the mobile takes."""
        self._attachment = attachment
        session = self._session
        fill_mobile_leg(session.legs[self.number], side, attachment)
        self._unheard = bool(side.options.bytes_unheard)
        offered = self._offered = max(0, side.options.send_window - len(attachment.reply))
        down = session.down
        session.mobile_edge = attachment.down_from + offered
        self._owes_fin = down.fin != NO_FIN and down.acked > down.fin
        return offered

    def begin(self, server: socket.socket | None) -> None:
        """Write the reply; the entry is filled in, and the flows are installed. `server` is its leg's at the first."""
        attachment = self._attachment
        assert attachment is not None
        self.generation = attachment.generation
        self._server = server
        if self._unheard:
            if server is not None:
                # Nobody knows yet what lies in the sockets. If the process dies, an ACK of the first byte tells: none.
                self._session.owed_up = self._session.owed_down = 1
            self._write(attachment)
            return
        reply, fd = attachment.reply, server.fileno() if server is not None else -1
        entry = ctypes.addressof(self._session)
        step = lib.msocks_join(attachment.sock.fileno(), reply, len(reply), fd, entry, self.number)
        self._go_on(step, attachment)

    def begin_entered(self, attachment: Attachment, server: socket.socket) -> None:
        """The same of a first pair that was entered in one call (`Tables.pair`)."""
        self._attachment = attachment
        self.generation = attachment.generation
        self._server = server
        reply = attachment.reply
        entry = ctypes.addressof(self._session)
        step = lib.msocks_join_pair(
            attachment.sock.fileno(),
            reply,
            len(reply),
            server.fileno(),
            entry,
            attachment.generation,
            len(attachment.early),
        )
        self._go_on(step, attachment)

    def _go_on(self, step: int, attachment: Attachment) -> None:
        if step == lib.JOIN_GONE:
            server, self._server = self._server, None
            self._attachment = None
            forget = self._host.reactor.forget
            forget(attachment.sock.detach())
            if server is not None:
                forget(server.detach())
            self._joined(attachment, server is not None, attachment.early, attachment.reply, b"")
        elif step == lib.JOIN_LOST:
            self._lose()
        else:
            self._deadline = time.monotonic() + _NEVER_S
            self._look()

    def begin_live(self, attachment: Attachment, *, window: int) -> None:
        """The leg carries already, and its numbers are known; its reply is crafted.

        Args:
            attachment: The leg.
            window: Bytes that the server may send behind what it knows to be acknowledged.
        """
        self._owes_fin = False
        early = attachment.early + _unread(attachment.sock, _MOST_COPIED_BYTES)
        self._let_go(attachment.sock)
        if early:  # behind a RECONNECT, so the mobile's still
            self._copy(early, attachment.up_from, window)
        else:
            self._host.output.send(say(self._session, SERVER, self._session.up.acked, window=window))
        self._watch_reply(attachment.down_from, attachment.reply, b"", is_said=False)

    def cancel(self) -> None:
        """Nobody waits for anything on this leg any more."""
        residual, self._residual = self._residual, None
        if residual is not None:
            residual.cancel()
        self._end_handshake()
        self._owner = None
        if self._said is not None:
            self._said = None
            self._host.residuals.let_go(self)
        attachment, self._attachment = self._attachment, None
        if attachment is not None:
            self._let_go(attachment.sock)

    def check(self) -> None:
        """Go on if the reply has left, which makes the legs the splice's, whatever has become of them since."""
        attachment = self._attachment
        if attachment is not None and self._session.legs[self.number].state >= LegState.LIVE:
            self._attachment = None
            self._finish(attachment)

    def repeat(self) -> None:
        """The mobile has what came behind the reply, but not the reply."""
        if self._said is not None and not self._is_heard():
            self._say_again()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _write(self, attachment: Attachment) -> None:
        """The reply, and no more: what is unheard is to be read before the socket vanishes."""
        try:
            attachment.sock.send(attachment.reply)
        except OSError:
            self._lose()
            return
        self._deadline = time.monotonic() + _NEVER_S
        self._look()

    def _look(self) -> None:
        """Whether the reply has left."""
        self.check()
        if self._attachment is None:
            return
        if time.monotonic() > self._deadline:
            self._lose()
        else:
            self._host.reactor.loop.call_later(_NOT_YET_S, self._look)

    def _lose(self) -> None:
        attachment, self._attachment = self._attachment, None
        assert attachment is not None
        self._let_go(attachment.sock)
        self._host.reactor.call_soon(self._tell_lost)

    def _tell_lost(self) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.on_leg_lost(self)

    def _let_go(self, sock: socket.socket) -> None:
        self._host.reactor.forget(sock.fileno())
        vanish(sock)

    def _finish(self, attachment: Attachment) -> None:
        most = _MOST_COPIED_BYTES if self._is_capped(attachment) else None
        early = attachment.early + _unread(attachment.sock, most)
        said = _unheard(attachment.sock, attachment.reply) if self._unheard else attachment.reply
        self._let_go(attachment.sock)
        banner = b""
        server, self._server = self._server, None
        if server is not None:
            banner = _unread(server)
            self._let_go(server)
        self._joined(attachment, server is not None, early, said, banner)

    def _is_capped(self, attachment: Attachment) -> bool:
        """Whether bytes behind the request are the mobile's still; else this host's kernel has acknowledged them."""
        return self._resumable and attachment.generation > 1

    def _joined(self, attachment: Attachment, first: bool, early: bytes, said: bytes, banner: bytes) -> None:
        """The sockets have vanished; `early` and `banner` lay in them, and `said` ends with the reply."""
        session = self._session
        owner, self._owner = self._owner, None
        assert owner is not None
        if first:
            session.owed_up, session.owed_down = len(early), len(banner)
        else:
            owner.on_live(self)
        # The first word to the server says what the mobile's window is; see `parked` for why not always.
        offered = None if session.flags & SessionFlag.RESUMING else self._offered
        if early and self._is_capped(attachment):
            self._copy(early, attachment.up_from, offered)
        elif early:
            self._note(attachment.up_from, early)
            owner.on_early(attachment.up_from, early)
        elif not first:
            self._host.output.send(say(session, SERVER, session.up.acked, window=offered))
        else:
            self._owes_ack = True
        self._watch_reply(attachment.down_from, said, banner)
        owner.on_spliced(self)

    def _end_handshake(self) -> None:
        """By its ACK of the reply the mobile should have; it may be gone, and the server does not wait for ever."""
        session = self._session
        if self._owes_ack and not session.up.packets:
            self._host.output.send(say(session, SERVER, session.up.acked, window=self._offered))
        self._owes_ack = False

    def _watch_reply(self, first: int, said: bytes, banner: bytes, *, is_said: bool = True) -> None:
        """The reply was said; say it again until the mobile has acknowledged it, and what belongs to it.

        `said` ends with the reply, before the stream's byte `first`. `banner` are bytes of the server's that this
        host's kernel has acknowledged.
        """
        session = self._session
        entry = session.legs[self.number]
        self._said_from = first - len(said)
        self._said = said + banner
        self._flags = PSH
        if banner:
            end = first + len(banner)
            session.down.sent = max(session.down.sent, end)
            session.legs[SERVER].arrived = max(session.legs[SERVER].arrived, end)
            entry.begins_out = end
        if self._owes_fin:
            # An earlier leg has acknowledged the server's FIN, so the server says it no more: this leg needs its own.
            entry.begins_out = session.down.fin + 1
            self._flags |= FIN
        if banner or self._owes_fin or not is_said:
            self._say_again()
        timeout_s = 3 * entry.round_trip_ms / 1000
        if timeout_s <= LEAST_S:
            self._host.residuals.wake_first(self)
        else:
            self._host.residuals.wake(self, timeout_s)

    def _say_again(self) -> None:
        said = self._said
        if said is not None:
            self._host.output.send(say(self._session, self.number, self._said_from, said, self._flags))

    def _is_heard(self) -> bool:
        return bool(self._session.legs[self.number].flags & LegFlag.REPLY_ACKED)

    def on_time(self) -> None:
        """Nearly always it was heard long ago; else there is a residual to be said, and to be waited for, from now."""
        if self._said is None:
            return
        if self._is_heard():
            self._said = None
            return
        self._end_handshake()
        self._say_again()
        timeout_s = 2 * max(LEAST_S, 3 * self._session.legs[self.number].round_trip_ms / 1000)
        clock = self._host.residuals
        self._residual = Residual(clock, self._say_again, self._is_heard, self._is_over, timeout_s=timeout_s)

    def _is_over(self, _residual: Residual) -> None:
        # A mobile that does not answer is found by those who watch over its links.
        self._residual = self._said = None

    def _copy(self, early: bytes, offset: int, offered: int | None) -> None:
        """Bytes behind the request of a leg that was capped: the mobile's still, the server gets a copy."""
        session = self._session
        size = largest_payload(session.legs[SERVER], _SAFE_SEGMENT)
        end = offset + len(early)
        self._note(offset, early)
        limit = min(end, session.up.edge)
        begin = max(offset, session.up.acked)
        if begin >= limit:
            self._host.output.send(say(session, SERVER, session.up.acked, window=offered))
        while begin < limit:
            piece = early[begin - offset : min(limit, begin + size) - offset]
            self._host.output.send(say(session, SERVER, begin, piece, PSH, window=offered))
            begin += len(piece)

    def _note(self, offset: int, early: bytes) -> None:
        """They have come on this leg."""
        session, mobile = self._session, self._session.legs[self.number]
        end = offset + len(early)
        session.up.sent = max(session.up.sent, end)
        mobile.arrived = max(mobile.arrived, end)


def _unheard(sock: socket.socket, reply: bytes) -> bytes:
    """The reply, and what was said before it that the mobile has not acknowledged (a method selection)."""
    try:
        waiting = unheard(sock)
    except OSError:
        return reply
    return waiting if waiting.endswith(reply) else reply


def _unread(sock: socket.socket, most: int | None = None) -> bytes:
    """What the kernel has acknowledged and nobody has read; no more than `most` bytes of it."""
    pieces = []
    try:
        left = bytes_unread(sock)
        left = left if most is None else min(left, most)
        while left > 0:
            piece = sock.recv(left)
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
    except OSError:
        pass
    return b"".join(pieces)
