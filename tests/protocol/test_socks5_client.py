from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msocks.errors import AuthenticationError, DestinationError, DestinationRefused, InvalidState, ProtocolError
from msocks.protocol.socks5_client import Connected, Socks5Client
from msocks.protocol.socks5_server import CommandRequested, PasswordOffered, Socks5Server
from msocks.protocol.socks5_wire import Command, ReplyCode
from msocks.values.endpoint import Endpoint

SERVER = Endpoint("server.example", 443)
CUTS = st.lists(st.integers(0, 1000), max_size=8)
CREDENTIALS = st.none() | st.tuples(st.binary(min_size=1, max_size=255), st.binary(min_size=1, max_size=255))
PLAUSIBLE = st.lists(
    st.sampled_from([b"\x05\x00", b"\x05\x02", b"\x01\x00", b"\x05\x00\x00\x01", b"\x03\x01a\x00\x50"])
    | st.binary(max_size=50),
    max_size=6,
).map(b"".join)

Outcome = tuple[list[Connected], str | None, bytes, bytes]


def connect(pieces: list[bytes], credentials: tuple[bytes, bytes] | None = (b"u", b"p")) -> Outcome:
    """Events, error, bytes sent, and the application's bytes."""
    client = Socks5Client(SERVER, credentials)
    events: list[Connected] = []
    unread = list(pieces)
    error, trailing = None, b""
    try:
        while unread and client.wants_data:
            events += client.receive(unread.pop(0))
        if events:
            trailing = client.take_trailing() + b"".join(unread)
    except (ProtocolError, AuthenticationError, DestinationError) as caught:
        error = f"{type(caught).__name__}: {caught}"
        assert not client.wants_data
    return events, error, client.data_to_send(), trailing


@given(PLAUSIBLE, CUTS)
def test_events_and_errors_do_not_depend_on_the_cuts(pieces, data: bytes, cuts):
    assert connect(pieces(data, cuts)) == connect([data])


@given(CREDENTIALS, st.from_type(Endpoint), st.from_type(Endpoint), CUTS, CUTS)
def test_client_and_server_understand_each_other(pieces, credentials, destination, bound, up_cuts, down_cuts):
    client = Socks5Client(destination, credentials)
    server = Socks5Server(allow_none=credentials is None, allow_password=True)
    server_events, client_events = [], []
    for _ in range(3):
        for piece in pieces(client.data_to_send(), up_cuts):
            for event in server.receive(piece):
                server_events.append(event)
                match event:
                    case PasswordOffered(username, password):
                        assert (username, password) == credentials
                        assert server.accept_password() == []
                    case CommandRequested():
                        server.reply(ReplyCode.SUCCEEDED, bound)
        for piece in pieces(server.data_to_send(), down_cuts):
            client_events += client.receive(piece)
    assert server_events[-1] == CommandRequested(Command.CONNECT, destination)
    assert client_events == [Connected(bound)]
    assert not client.wants_data


def test_without_authentication_byte_for_byte():
    client = Socks5Client(Endpoint.parse("192.0.2.1:80"))
    assert client.data_to_send().hex() == "050100"
    assert client.receive(bytes.fromhex("0500")) == []
    assert client.data_to_send().hex() == "05010001c00002010050"
    assert client.receive(bytes.fromhex("05000001c63364019c40") + b"banner") == [
        Connected(Endpoint.parse("198.51.100.1:40000"))
    ]
    assert client.take_trailing() == b"banner"
    assert client.take_trailing() == b""


def test_with_a_password_byte_for_byte():
    client = Socks5Client(SERVER, (b"alice", b"secret"))
    assert client.data_to_send().hex() == "05020002"
    client.receive(bytes.fromhex("0502"))
    assert client.data_to_send() == b"\x01\x05alice\x06secret"
    client.receive(bytes.fromhex("0100"))
    assert client.data_to_send() == b"\x05\x01\x00\x03\x0eserver.example\x01\xbb"


@pytest.mark.parametrize(
    ("answer", "credentials", "error"),
    [
        ("05ff", None, "AuthenticationError: the proxy accepts none of the offered authentication methods; give"),
        (
            "05ff",
            (b"u", b"p"),
            "AuthenticationError: the proxy accepts none of the offered authentication methods; ask",
        ),
        ("0502", None, "ProtocolError: the proxy chose the method 0x02"),
        ("0501", (b"u", b"p"), "ProtocolError: the proxy chose the method 0x01"),
        ("04", None, "ProtocolError: what answers at the proxy's address sends 0x04"),
        ("05020101", (b"u", b"p"), "AuthenticationError: the proxy rejects the username or the password"),
        ("050202", (b"u", b"p"), "ProtocolError: what answers at the proxy's address sends 0x02"),
        ("050004", None, "ProtocolError: what answers at the proxy's address sends 0x04"),
        ("0500050000ff", None, "ProtocolError: the SOCKS address type 0xff is not defined"),
        ("050005000003026120" + "0050", None, "ProtocolError: a SOCKS message names a malformed host"),
        ("05000505", None, "DestinationRefused: server.example:443: the destination refused the connection"),
        ("05000502", None, "DestinationError: server.example:443: the proxy's rules do not allow"),
        ("050005aa", None, "DestinationError: server.example:443: .* undefined reply code 0xaa"),
    ],
)
def test_refusals(answer, credentials, error, each_byte):
    data = bytes.fromhex(answer)
    for pieces in ([data], list(each_byte(data))):
        events, message, _, _ = connect(pieces, credentials)
        assert events == []
        assert message is not None
        assert re.match(error, message)


def test_the_reply_code_is_told():
    client = Socks5Client(SERVER)
    client.receive(b"\x05\x00")
    with pytest.raises(DestinationRefused) as caught:
        client.receive(b"\x05\x05\x00\x01" + bytes(6))
    assert caught.value.reply_code == ReplyCode.CONNECTION_REFUSED


def test_calls_at_the_wrong_time():
    client = Socks5Client(SERVER)
    with pytest.raises(InvalidState, match="not established"):
        client.take_trailing()
    client.receive(bytes.fromhex("0500" + "05000001" + "00" * 6))
    with pytest.raises(InvalidState, match="does not want data"):
        client.receive(b"x")


@pytest.mark.parametrize("credentials", [(b"", b"p"), (b"u", b""), (b"u" * 256, b"p"), (b"u", b"p" * 256)])
def test_credentials_have_1_to_255_bytes(credentials):
    with pytest.raises(ValueError, match="1 to 255 bytes"):
        Socks5Client(SERVER, credentials)
