"""A plain SOCKS5 client (RFC 1928): served completely, but its session ends with its connection."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

import structlog

from msocks.datapath.interface import Attachment
from msocks.errors import ProtocolError
from msocks.protocol.leg import LegReply
from msocks.protocol.socks5_server import CommandRequested, PasswordOffered, Socks5Server, Socks5ServerEvent
from msocks.protocol.socks5_wire import Command, ReplyCode
from msocks.proxy.admission import Source
from msocks.proxy.associations import Association
from msocks.proxy.incoming import Incoming
from msocks.proxy.plain_bind import BindHost, PlainBind
from msocks.proxy.proxied_session import ProxiedSession
from msocks.proxy.udp_registry import UdpRegistry
from msocks.proxy.waiting_leg import Grant, WaitingLeg
from msocks.store.state_directory import StoreError
from msocks.values.endpoint import Endpoint

_log = structlog.get_logger("msocks.proxy.socks")

ANYBODY = ""
"""The user of those who needed no authentication."""


class SocksHost(BindHost, Protocol):
    """What a plain SOCKS5 connection needs of the proxy."""

    @property
    def udp(self) -> UdpRegistry:
        """Where UDP associations are kept."""

    def socks_machine(self) -> Socks5Server:
        """A machine that offers the methods which are allowed now."""

    async def password_matches(self, source: Source, user: bytes, password: bytes) -> str | None:
        """The user's name, where the password is right. Raises StoreError where nobody can tell."""

    def open_plain(self, leg: WaitingLeg, user: str, destination: Endpoint) -> ProxiedSession | None:
        """Begin a session; None where the leg was answered."""


class SocksConnection:
    """Implements `msocks.proxy.incoming.Speaker` and `msocks.proxy.plain_bind.BindingLeg`."""

    __slots__ = (
        "_binding",
        "_checking",
        "_host",
        "_incoming",
        "_machine",
        "_peer",
        "_session",
        "_user",
        "gone",
        "sockaddr",
    )  # fmt: skip

    generation = 1
    leg_number = 0
    split = False  # whoever knows of none
    association: Association | None = None

    def __init__(self, host: SocksHost, incoming: Incoming) -> None:
        self.gone = False
        self.sockaddr = incoming.sockaddr
        self._host = host
        self._incoming = incoming
        self._machine = host.socks_machine()
        self._user = ANYBODY
        self._session: ProxiedSession | None = None
        self._binding: PlainBind | None = None
        self._peer: Endpoint | None = None  # who has connected for a BIND
        self._checking: asyncio.Task[None] | None = None

    # -- Speaker ----------------------------------------------------------------------------------------------------

    @property
    def wants_data(self) -> bool:
        return self._machine.wants_data

    @property
    def gives_up_at_eof(self) -> bool:
        return self._binding is not None

    def receive(self, data: bytes) -> None:
        try:
            events = self._machine.receive(data)
        except ProtocolError as error:
            self._refuse(error)
            return
        self._act(events)

    def lost(self) -> None:
        self.gone = True
        if self._checking is not None:
            self._checking.cancel()
        if self._binding is not None:
            self._binding.cancel()
        if self._session is not None:
            self._session.leg_gone(self)

    # -- the negotiation --------------------------------------------------------------------------------------------

    def _act(self, events: list[Socks5ServerEvent]) -> None:
        outgoing = self._machine.data_to_send()
        if outgoing:
            self._incoming.send(outgoing)
        for event in events:
            if self.gone:
                return
            match event:
                case CommandRequested(command=Command.CONNECT, destination=destination):
                    self._incoming.established()
                    self._session = self._host.open_plain(self, self._user, destination)
                case CommandRequested(command=Command.UDP_ASSOCIATE, destination=announced):
                    self._associate(announced)
                case CommandRequested(command=Command.BIND, destination=peer):
                    self._incoming.established()
                    self._binding = PlainBind(self._host, self, self._user, peer)
                case PasswordOffered():
                    self._checking = asyncio.get_running_loop().create_task(self._check(event))

    def _associate(self, announced: Endpoint) -> None:
        """A UDP association, which takes the connection over and ends with it."""
        udp, incoming = self._host.udp, self._incoming
        opened = udp.open_plain(self._user, incoming, announced)
        if isinstance(opened, ReplyCode):
            self._answer(opened)
            return
        self._machine.reply(ReplyCode.SUCCEEDED, udp.told(opened.bound))
        incoming.send(self._machine.data_to_send())
        if self.gone:
            opened.close()
        else:
            opened.take_over(incoming.give_away())

    async def _check(self, offered: PasswordOffered) -> None:
        user = None
        try:
            user = await self._host.password_matches(self._incoming.source, offered.username, offered.password)
        except StoreError as error:
            _log.error("users_unreadable", reason=str(error))
        self._checking = None
        if user is None:
            _log.warning(
                "password_refused",
                client=str(self._incoming.peer),
                user=ascii(offered.username.decode(errors="replace")),
            )
            self._machine.reject_password()
            self._incoming.answer_and_close(self._machine.data_to_send())
            return
        self._user = user
        try:
            events = self._machine.accept_password()
        except ProtocolError as error:
            self._refuse(error)
            return
        self._act(events)
        if not self.gone and self.wants_data:
            self._incoming.resume()

    def _refuse(self, error: ProtocolError) -> None:
        _log.info("socks_refused", client=str(self._incoming.peer), reason=error.what)
        self._incoming.answer_and_close(self._machine.data_to_send())

    def _answer(self, code: ReplyCode) -> None:
        self._machine.reply(code)
        self._incoming.answer_and_close(self._machine.data_to_send())

    # -- BindingLeg -------------------------------------------------------------------------------------------------

    def listening(self, bound: Endpoint) -> None:
        self._machine.listening(bound)
        self._incoming.send(self._machine.data_to_send())

    def called_by(self, peer: Endpoint) -> None:
        self._peer = peer

    def cannot_bind(self, code: ReplyCode) -> None:
        self._binding = None
        self._answer(code)

    # -- WaitingLeg -------------------------------------------------------------------------------------------------

    @property
    def sock(self) -> socket.socket:
        return self._incoming.sock

    def grant(self, grant: Grant) -> Attachment:
        machine = self._machine
        machine.reply(ReplyCode.SUCCEEDED, self._peer or grant.bound)
        self._binding = None
        return grant.attachment(self._incoming.give_away(), machine.data_to_send(), machine.take_trailing())

    def discard(self) -> None:
        self.gone = True
        self._incoming.discard_given()

    def answer(self, reply: LegReply) -> None:
        if not self.gone:
            self._answer(ReplyCode(reply.socks_reply or ReplyCode.GENERAL_FAILURE))
