"""What a program says on the agent's local port before its bytes flow, in SOCKS5 or as an HTTP CONNECT. Sans-IO.

The first byte decides: no method of HTTP begins with the byte 5.
"""

from __future__ import annotations

from typing import Protocol

from msocks.agent.answers import http_status_of, reply_code_of
from msocks.errors import MsocksError, ProtocolError, ProtocolFault
from msocks.protocol.http_connect import HttpConnectServer
from msocks.protocol.socks5_server import CommandRequested, Socks5Server
from msocks.protocol.socks5_wire import NO_ADDRESS, Command, ReplyCode
from msocks.values.endpoint import Endpoint

_TLS_HANDSHAKE = 0x16
_SOCKS4 = 0x04


class Answer(Protocol):
    """How a program that has said where to is answered. What the methods return is sent to it."""

    @property
    def name(self) -> str:
        """The protocol, for logs."""

    def grant(self, bound: Endpoint | None) -> bytes:
        """The connection stands; `bound` is the proxy's address toward the destination. Raises OSError."""

    def refuse(self, error: MsocksError) -> bytes | None:
        """There is none; after this the program's connection is closed, or reset where nothing can be said (None)."""

    def take_trailing(self) -> bytes:
        """The program's bytes that came with the request."""


class Dialogue(Answer, Protocol):
    """One program's request. Feed `receive`, send what `data_to_send` gives after every call, also after an error."""

    @property
    def command(self) -> Command:
        """What is asked for, once `receive` has returned a destination."""

    def receive(self, data: bytes) -> Endpoint | None:
        """Take bytes; return the destination with those that complete the request. Nothing is received after that.

        Raises:
            ProtocolError: It cannot be served. Send `data_to_send`, which has the refusal, and close.
        """

    def data_to_send(self) -> bytes:
        """The bytes to send now; empty when asked again."""


class SocksDialogue:
    """SOCKS5 without authentication: who reaches the port may use it."""

    name = "SOCKS5"

    def __init__(self) -> None:
        self.command = Command.CONNECT
        self._machine = Socks5Server(allow_none=True, allow_password=False)

    def receive(self, data: bytes) -> Endpoint | None:
        for event in self._machine.receive(data):
            # Passwords are not allowed, so nothing else can come.
            assert isinstance(event, CommandRequested)
            self.command = event.command
            if event.command is not Command.CONNECT:
                return event.destination
            if event.destination.port == 0:
                self._machine.reply(ReplyCode.GENERAL_FAILURE)
                raise _port_zero(event.destination)
            return event.destination
        return None

    def data_to_send(self) -> bytes:
        return self._machine.data_to_send()

    def grant(self, bound: Endpoint | None) -> bytes:
        self._machine.reply(ReplyCode.SUCCEEDED, bound or NO_ADDRESS)
        return self._machine.data_to_send()

    def listening(self, bound: Endpoint) -> bytes:
        """The first answer to BIND: `bound` is where the peer has to connect. The second is `grant` or `refuse`."""
        self._machine.listening(bound)
        return self._machine.data_to_send()

    def refuse(self, error: MsocksError) -> bytes:
        self._machine.reply(reply_code_of(error))
        return self._machine.data_to_send()

    def take_trailing(self) -> bytes:
        return self._machine.take_trailing()


class HttpDialogue:
    """HTTP CONNECT. A refusal tells a person the reason in its body."""

    name = "HTTP CONNECT"
    command = Command.CONNECT

    def __init__(self) -> None:
        self._machine = HttpConnectServer()

    def receive(self, data: bytes) -> Endpoint | None:
        for event in self._machine.receive(data):
            if event.destination.port == 0:
                error = _port_zero(event.destination)
                self._machine.refuse(http_status_of(error), str(error))
                raise error
            return event.destination
        return None

    def data_to_send(self) -> bytes:
        return self._machine.data_to_send()

    def grant(self, bound: Endpoint | None) -> bytes:
        del bound  # CONNECT's answer has no place for it
        self._machine.accept()
        return self._machine.data_to_send()

    def refuse(self, error: MsocksError) -> bytes:
        self._machine.refuse(http_status_of(error), str(error))
        return self._machine.data_to_send()

    def take_trailing(self) -> bytes:
        return self._machine.take_trailing()


def dialogue_for(first: int) -> Dialogue:
    """The dialogue that a connection whose first byte is `first` will be.

    Raises:
        ProtocolError: It is none that is spoken here; for some mistakes the error tells which it probably is.
    """
    if first == _TLS_HANDSHAKE:
        raise ProtocolError(
            ProtocolFault.VERSION,
            "a program speaks TLS to the agent's port",
            remedy="give it the agent as a SOCKS5 proxy (socks5h://) or as a plain HTTP proxy (http://)",
        )
    if first == _SOCKS4:
        raise ProtocolError(
            ProtocolFault.VERSION, "a program speaks SOCKS4 to the agent's port", remedy="set it to SOCKS5"
        )
    if chr(first).isascii() and chr(first).isalpha():
        return HttpDialogue()
    return SocksDialogue()


def _port_zero(destination: Endpoint) -> ProtocolError:
    return ProtocolError(ProtocolFault.FIELD, f"{destination}: no server has the port 0")
