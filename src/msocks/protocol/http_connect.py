"""The proxy's side of an HTTP/1.1 CONNECT (RFC 9110 section 9.3.6) as a state machine, for the agent's local port.

h11 reads and writes the HTTP; here is what CONNECT adds: the target in authority form, the refusal of everything else,
a head of limited size, and the bytes behind it kept for the tunnel. Credentials (Proxy-Authorization) are ignored: the
port is the agent's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

import h11

from msocks.errors import AddressError, InvalidState, ProtocolError, ProtocolFault
from msocks.protocol.socks5_wire import ReplyCode
from msocks.values.endpoint import Endpoint

MAX_HEAD_BYTES = 16384
"""Request line and header fields together, the empty line included."""

_STATUS_OF_REPLY = {
    ReplyCode.NOT_ALLOWED: HTTPStatus.FORBIDDEN,
    ReplyCode.TTL_EXPIRED: HTTPStatus.GATEWAY_TIMEOUT,
    ReplyCode.COMMAND_NOT_SUPPORTED: HTTPStatus.NOT_IMPLEMENTED,
}


def status_of(code: ReplyCode) -> HTTPStatus:
    """The HTTP status that says what a SOCKS reply code says, SUCCEEDED excepted."""
    return _STATUS_OF_REPLY.get(code, HTTPStatus.BAD_GATEWAY)


@dataclass(frozen=True, slots=True)
class ConnectRequested:
    """The request is complete; answer with `accept` or `refuse`.

    Attributes:
        destination: The request's target.
    """

    destination: Endpoint


class HttpConnectServer:
    """One connection that begins with an HTTP request.

    Memory: a head of at most `MAX_HEAD_BYTES` and what the call that completed it brought.

    Attributes:
        wants_data: Whether `receive` may be called: until the request is complete or refused.
    """

    def __init__(self) -> None:
        # The limit on the head is kept here: h11's own depends on how the bytes are cut into calls.
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * MAX_HEAD_BYTES)
        self._fed = 0
        self._trailing = b""
        self._outgoing = bytearray()
        self._destination: Endpoint | None = None
        self._over = False
        self._has_body = True

    @property
    def wants_data(self) -> bool:
        return self._destination is None and not self._over

    def receive(self, data: bytes) -> list[ConnectRequested]:
        """Take bytes from the connection; return the request with the bytes that complete it.

        Raises:
            ProtocolError: It is no CONNECT that can be served. Send `data_to_send`, which has the refusal, and close.
            InvalidState: `wants_data` is false.
        """
        if not self.wants_data:
            raise InvalidState("the HTTP connection does not want data now", remedy="look at wants_data first")
        room = MAX_HEAD_BYTES - self._fed
        self._fed += len(data[:room])
        try:
            self._http.receive_data(data[:room])
            request = self._http.next_event()
        except h11.RemoteProtocolError as error:
            raise self._fail(HTTPStatus(error.error_status_hint), f"the HTTP request is malformed: {error}") from None
        if isinstance(request, h11.Request):
            self._destination = self._target_of(request)
            self._trailing = self._http.trailing_data[0] + data[room:]
            return [ConnectRequested(self._destination)]
        if self._fed == MAX_HEAD_BYTES:
            raise self._fail(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the HTTP request's head exceeds {MAX_HEAD_BYTES} bytes"
            )
        return []

    def data_to_send(self) -> bytes:
        """The bytes to send now; empty when asked again."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def accept(self) -> None:
        """Tell the client that the tunnel is there; bytes from now on are the application's.

        Raises:
            InvalidState: No request is waiting.
        """
        self._expect_request()
        self._over = True
        self._write(h11.Response(status_code=200, reason=b"Connection established", headers=[]))

    def refuse(self, status: HTTPStatus, text: str) -> None:
        """Tell the client why there is no tunnel. Send `data_to_send` and close.

        Args:
            status: 4xx or 5xx, for instance from `status_of`.
            text: The same for a person.

        Raises:
            InvalidState: No request is waiting.
        """
        self._expect_request()
        self._answer(status, text)

    def take_trailing(self) -> bytes:
        """The application's bytes that came with the request; empty when asked again.

        Raises:
            InvalidState: The request is not complete.
        """
        if self._destination is None:
            raise InvalidState("the HTTP request is not complete")
        trailing, self._trailing = self._trailing, b""
        return trailing

    def _expect_request(self) -> None:
        if self._destination is None or self._over:
            raise InvalidState("no HTTP request is waiting for an answer")

    def _target_of(self, request: h11.Request) -> Endpoint:
        self._has_body = request.method != b"HEAD"
        if request.http_version not in (b"1.0", b"1.1"):
            raise self._fail(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "the HTTP version is not 1.0 or 1.1")
        if request.method != b"CONNECT":
            raise self._fail(
                HTTPStatus.METHOD_NOT_ALLOWED, f"the HTTP method {request.method.decode('ascii')} is not CONNECT"
            )
        for name, value in request.headers:
            if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")):
                raise self._fail(HTTPStatus.BAD_REQUEST, "a CONNECT request has content")
        try:
            return Endpoint.parse(request.target.decode("ascii"))
        except AddressError as error:
            raise self._fail(HTTPStatus.BAD_REQUEST, f"the target of CONNECT is wrong: {error}") from None

    def _fail(self, status: HTTPStatus, what: str) -> ProtocolError:
        self._answer(status, what)
        return ProtocolError(ProtocolFault.SYNTAX, what)

    def _answer(self, status: HTTPStatus, text: str) -> None:
        self._over = True
        body = f"msocks: {text}\n".encode()
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            headers.append(("Allow", "CONNECT"))
        self._write(h11.Response(status_code=status, reason=status.phrase.encode("ascii"), headers=headers))
        if self._has_body:
            self._write(h11.Data(data=body))
        self._write(h11.EndOfMessage())

    def _write(self, event: h11.Event) -> None:
        self._outgoing += self._http.send(event) or b""
