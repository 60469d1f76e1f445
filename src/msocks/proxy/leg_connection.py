"""An MSOCKS leg in its handshake: authenticates the request before it touches anything."""

from __future__ import annotations

import dataclasses
import socket
from typing import Protocol

import structlog

from msocks.datapath.interface import Attachment
from msocks.errors import ProtocolError
from msocks.protocol.leg import (
    Bind,
    Close,
    Connect,
    LegReply,
    LegRequest,
    LegStatus,
    Query,
    Reconnect,
)
from msocks.protocol.leg_reply_codec import encode_reply
from msocks.protocol.leg_request_codec import LegRequestDecoder, SignedRequest
from msocks.protocol.leg_wire import MAC_BYTES
from msocks.protocol.replay import Freshness
from msocks.protocol.socks5_wire import ReplyCode
from msocks.proxy.associations import Association
from msocks.proxy.incoming import Incoming
from msocks.proxy.proxied_session import ProxiedSession
from msocks.proxy.session_registry import SessionRegistry
from msocks.proxy.waiting_leg import Grant, WaitingLeg
from msocks.values.ids import AssociationId

_log = structlog.get_logger("msocks.proxy.leg")


class LegHost(Protocol):
    """What a leg needs of the proxy."""

    @property
    def sessions(self) -> SessionRegistry:
        """All sessions."""

    def association(self, association: AssociationId) -> Association | None:
        """The association of that id."""

    def clock_ms(self) -> int:
        """The proxy's clock, as it is told on the wire."""

    def connect(self, leg: WaitingLeg, user: str, request: Connect) -> ProxiedSession | None:
        """A CONNECT within the user's limits; None where the leg was answered."""


class LegConnection:
    """Implements `msocks.proxy.incoming.Speaker` and `msocks.proxy.proxied_session.WaitingLeg`."""

    __slots__ = (
        "_decoder",
        "_host",
        "_incoming",
        "_session",
        "_signed",
        "association",
        "gone",
        "sockaddr",
    )  # fmt: skip

    gives_up_at_eof = False  # a program that has written all may end its direction early

    def __init__(self, host: LegHost, incoming: Incoming) -> None:
        self.gone = False
        self.sockaddr = incoming.sockaddr
        self.association: Association | None = None
        self._host = host
        self._incoming = incoming
        self._decoder = LegRequestDecoder()
        self._signed: SignedRequest | None = None
        self._session: ProxiedSession | None = None

    # -- Speaker ----------------------------------------------------------------------------------------------------

    @property
    def wants_data(self) -> bool:
        return self._signed is None

    def receive(self, data: bytes) -> None:
        try:
            signed = self._decoder.receive(data)
        except ProtocolError as error:
            _log.info("leg_malformed", client=str(self._incoming.peer), reason=error.what)
            self._say(LegReply(status=LegStatus.MALFORMED), bytes(MAC_BYTES), None)
            return
        if signed is not None:
            self._signed = signed
            self._incoming.established()
            self._consider(signed)

    def lost(self) -> None:
        self.gone = True
        if self._session is not None:
            self._session.leg_gone(self)

    # -- the request ------------------------------------------------------------------------------------------------

    def _consider(self, signed: SignedRequest) -> None:
        request = signed.request
        association = self._host.association(request.association)
        if association is None:
            _log.info("leg_refused", client=str(self._incoming.peer), reason="unknown association")
            self._say(LegReply(status=LegStatus.UNKNOWN_ASSOCIATION), signed.mac, None)
            return
        if not signed.verify(association.key_up):
            _log.warning("leg_refused", client=str(self._incoming.peer), reason="wrong MAC", user=association.user)
            self._say(LegReply(status=LegStatus.BAD_MAC), signed.mac, None)
            return
        self.association = association
        if request.expires_ms < self._host.clock_ms():
            self._refuse(LegStatus.EXPIRED, "expired")
        elif association.leg_numbers.commit(request.leg_number) is not Freshness.FRESH:
            self._refuse(LegStatus.REPLAYED, "replayed")
        else:
            self._carry_out(request, association.user)

    def _carry_out(self, request: LegRequest, user: str) -> None:
        sessions = self._host.sessions
        match request:
            case Connect():
                self._session = self._host.connect(self, user, request)
            case Reconnect():
                sessions.reconnect(self, user, request)
            case Query():
                sessions.query(self, user, request)
            case Close():
                sessions.close_session(self, user, request)
            case Bind():
                code = ReplyCode.COMMAND_NOT_SUPPORTED
                self.answer(LegReply(status=LegStatus.REFUSED, socks_reply=code))

    def _refuse(self, status: LegStatus, reason: str) -> None:
        user = self.association.user if self.association is not None else ""
        _log.warning("leg_refused", client=str(self._incoming.peer), reason=reason, user=user)
        self.answer(LegReply(status=status))

    def _say(self, reply: LegReply, request_mac: bytes, key_down: bytes | None) -> None:
        self._incoming.answer_and_close(encode_reply(self._timed(reply), request_mac, key_down))

    def _timed(self, reply: LegReply) -> LegReply:
        return dataclasses.replace(reply, proxy_ms=self._host.clock_ms())

    # -- WaitingLeg -------------------------------------------------------------------------------------------------

    @property
    def sock(self) -> socket.socket:
        return self._incoming.sock

    @property
    def generation(self) -> int:
        return self._signed.request.generation if self._signed is not None else 0

    @property
    def leg_number(self) -> int:
        return self._signed.request.leg_number if self._signed is not None else 0

    @property
    def split(self) -> bool:
        request = self._signed.request if self._signed is not None else None
        return isinstance(request, Connect | Reconnect) and request.middlebox

    def grant(self, grant: Grant) -> Attachment:
        assert self._signed is not None
        assert self.association is not None
        reply = encode_reply(self._timed(grant.reply()), self._signed.mac, self.association.key_down)
        trailing = self._decoder.take_trailing()
        return grant.attachment(self._incoming.give_away(), reply, trailing, split=self.split)

    def discard(self) -> None:
        self.gone = True
        self._incoming.discard_given()

    def answer(self, reply: LegReply) -> None:
        assert self._signed is not None
        assert self.association is not None
        if not self.gone:
            self._say(reply, self._signed.mac, self.association.key_down)
