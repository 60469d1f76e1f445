from __future__ import annotations

from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msocks.errors import InvalidState, ProtocolError
from msocks.protocol.http_connect import MAX_HEAD_BYTES, ConnectRequested, HttpConnectServer, status_of
from msocks.protocol.socks5_wire import ReplyCode
from msocks.values.endpoint import Endpoint

CUTS = st.lists(st.integers(0, 40_000), max_size=6)
PLAUSIBLE = st.lists(
    st.sampled_from(
        [b"CONNECT ", b"GET /", b"a.example:443", b" HTTP/1.1\r\n", b"Host: a\r\n", b"\r\n", b"\n", b" ", b"X: y\r\n"]
    )
    | st.binary(max_size=20),
    max_size=10,
).map(b"".join)

Outcome = tuple[list[ConnectRequested], str | None, bytes]


def serve(pieces: list[bytes]) -> Outcome:
    """Events, what was answered to an error, and the application's bytes."""
    server = HttpConnectServer()
    unread = list(pieces)
    events: list[ConnectRequested] = []
    try:
        while unread and server.wants_data:
            events += server.receive(unread.pop(0))
    except ProtocolError:
        answer = server.data_to_send()
        assert not server.wants_data
        return events, answer.partition(b"\r\n")[0].decode(), b""
    assert server.data_to_send() == b""
    return events, None, (server.take_trailing() if events else b"") + b"".join(unread)


def head(first: bytes, *fields: bytes) -> bytes:
    return b"\r\n".join((first, *fields, b"", b""))


CONNECT = head(b"CONNECT a.example:443 HTTP/1.1", b"Host: a.example:443")
REQUESTED = [ConnectRequested(Endpoint("a.example", 443))]


@given(PLAUSIBLE, CUTS)
def test_the_outcome_does_not_depend_on_the_cuts(pieces, data: bytes, cuts):
    assert serve(pieces(data, cuts)) == serve([data])


@given(st.from_type(Endpoint), st.binary(max_size=100), CUTS)
def test_a_request_is_understood_however_it_is_cut(pieces, destination: Endpoint, early: bytes, cuts):
    data = head(f"CONNECT {destination} HTTP/1.1".encode(), b"Host: x") + early
    assert serve(pieces(data, cuts)) == ([ConnectRequested(destination)], None, early)


@given(st.integers(-3, 3), CUTS)
def test_the_limit_of_the_head_does_not_depend_on_the_cuts(pieces, excess: int, cuts):
    start = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a\r\nX: "
    data = start + b"x" * (MAX_HEAD_BYTES + excess - len(start) - 4) + b"\r\n\r\n"
    assert len(data) == MAX_HEAD_BYTES + excess
    expected: Outcome = (
        (REQUESTED, None, b"tail" * 9000) if excess <= 0 else ([], "HTTP/1.1 431 Request Header Fields Too Large", b"")
    )
    assert serve(pieces(data + b"tail" * 9000, cuts)) == expected


@pytest.mark.parametrize(
    "data",
    [
        CONNECT,
        head(b"CONNECT a.example:443 HTTP/1.0"),
        head(b"CONNECT a.example:443 HTTP/1.1", b"Host: x", b"Proxy-Authorization: Basic eDp5", b"Content-Length: 0"),
        head(b"CONNECT a.example:443 HTTP/1.1", b"Host: x", b"Proxy-Connection: close", b"Connection: close"),
        CONNECT.replace(b"\r\n", b"\n"),
    ],
)
def test_forms_of_connect(data):
    assert serve([data + b"\x16\x03"]) == (REQUESTED, None, b"\x16\x03")


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (head(b"GET http://a.example/ HTTP/1.1", b"Host: a.example"), "405 Method Not Allowed"),
        (head(b"HEAD http://a.example/ HTTP/1.1", b"Host: a.example"), "405 Method Not Allowed"),
        (head(b"connect a.example:443 HTTP/1.1", b"Host: x"), "405 Method Not Allowed"),
        (head(b"CONNECT a.example HTTP/1.1", b"Host: x"), "400 Bad Request"),
        (head(b"CONNECT http://a.example:443/ HTTP/1.1", b"Host: x"), "400 Bad Request"),
        (head(b"CONNECT 2001:db8::1:443 HTTP/1.1", b"Host: x"), "400 Bad Request"),
        (head(b"CONNECT a.example:70000 HTTP/1.1", b"Host: x"), "400 Bad Request"),
        (head(b"CONNECT a.example:443 HTTP/1.1"), "400 Bad Request"),
        (head(b"CONNECT a.example:443 HTTP/1.1", b"Host: x", b"Host: y"), "400 Bad Request"),
        (head(b"CONNECT a.example:443 HTTP/1.1", b"Host: x", b"Content-Length: 5"), "400 Bad Request"),
        (head(b"CONNECT a.example:443 HTTP/1.1", b"Host: x", b"Transfer-Encoding: chunked"), "400 Bad Request"),
        (head(b"CONNECT a.example:443 HTTP/1.1", b"Host: x", b"no colon"), "400 Bad Request"),
        (head(b"CONNECT a.example:443"), "400 Bad Request"),
        (head(b"PRI * HTTP/2.0"), "505 HTTP Version Not Supported"),
        (b"\x16\x03\x01\x02\x00", "400 Bad Request"),
        (b"\x05\x01\x00", "400 Bad Request"),
        (b"\r\n", "400 Bad Request"),
    ],
)
def test_what_is_refused(data, answer, each_byte):
    assert serve([data]) == serve(list(each_byte(data))) == ([], f"HTTP/1.1 {answer}", b"")


def test_a_wrong_method_is_told_the_right_one():
    server = HttpConnectServer()
    with pytest.raises(ProtocolError, match="GET is not CONNECT"):
        server.receive(head(b"GET http://a.example/ HTTP/1.1", b"Host: a.example"))
    answer = server.data_to_send()
    assert b"\r\nAllow: CONNECT\r\n" in answer
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(b"msocks: the HTTP method GET is not CONNECT\n")


def test_an_accepted_request():
    server = HttpConnectServer()
    server.receive(CONNECT + b"early")
    server.accept()
    assert server.data_to_send() == b"HTTP/1.1 200 Connection established\r\n\r\n"
    assert server.take_trailing() == b"early"
    assert server.take_trailing() == b""
    assert not server.wants_data


def test_a_refused_request():
    server = HttpConnectServer()
    server.receive(CONNECT)
    server.refuse(HTTPStatus.BAD_GATEWAY, "the destination refused the connection")
    start, _, body = server.data_to_send().partition(b"\r\n\r\n")
    assert start.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert f"Content-Length: {len(body)}".encode() in start
    assert body == b"msocks: the destination refused the connection\n"


def test_calls_at_the_wrong_time():
    server = HttpConnectServer()
    for call in (server.accept, server.take_trailing, lambda: server.refuse(HTTPStatus.BAD_GATEWAY, "")):
        with pytest.raises(InvalidState):
            call()
    server.receive(CONNECT)
    with pytest.raises(InvalidState, match="does not want data"):
        server.receive(b"x")
    server.accept()
    with pytest.raises(InvalidState):
        server.accept()
    with pytest.raises(InvalidState):
        server.refuse(HTTPStatus.BAD_GATEWAY, "")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ReplyCode.GENERAL_FAILURE, 502),
        (ReplyCode.NOT_ALLOWED, 403),
        (ReplyCode.NETWORK_UNREACHABLE, 502),
        (ReplyCode.HOST_UNREACHABLE, 502),
        (ReplyCode.CONNECTION_REFUSED, 502),
        (ReplyCode.TTL_EXPIRED, 504),
        (ReplyCode.COMMAND_NOT_SUPPORTED, 501),
        (ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED, 502),
    ],
)
def test_reply_codes_in_the_words_of_http(code, status):
    assert status_of(code) == status
