from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msocks.errors import InvalidState, ProtocolError
from msocks.protocol.socks5_server import CommandRequested, PasswordOffered, Socks5Server, Socks5ServerEvent
from msocks.protocol.socks5_wire import Command, ReplyCode, encode_address
from msocks.values.endpoint import Endpoint

CUTS = st.lists(st.integers(0, 1000), max_size=8)
# Bytes that get past the first checks, and then are anything.
PLAUSIBLE = st.lists(
    st.sampled_from([b"\x05\x01\x00", b"\x05\x01\x02", b"\x05\x01\x00\x01", b"\x01\x01a\x01b", b"\x03\x01a\x00\x50"])
    | st.binary(max_size=300),
    max_size=6,
).map(b"".join)

Outcome = tuple[list[Socks5ServerEvent], str | None, bytes, bytes]


def serve(pieces: list[bytes], *, password_is_right: bool = True) -> Outcome:
    """Events, error, bytes answered, and the application's bytes, with a caller that reads no more than is wanted."""
    server = Socks5Server(allow_none=True, allow_password=True)
    events: list[Socks5ServerEvent] = []
    unread = list(pieces)
    error, trailing = None, b""
    try:
        while unread and server.wants_data:
            new = server.receive(unread.pop(0))
            events += new
            if any(isinstance(event, PasswordOffered) for event in new):
                if password_is_right:
                    events += server.accept_password()
                else:
                    server.reject_password()
        if events and isinstance(events[-1], CommandRequested):
            trailing = server.take_trailing() + b"".join(unread)
    except ProtocolError as caught:
        error = str(caught)
    return events, error, server.data_to_send(), trailing


@given(PLAUSIBLE, CUTS, st.booleans())
def test_events_errors_and_answers_do_not_depend_on_the_cuts(pieces, data: bytes, cuts, password_is_right: bool):
    whole = serve([data], password_is_right=password_is_right)
    assert serve(pieces(data, cuts), password_is_right=password_is_right) == whole


@given(st.sampled_from(Command), st.from_type(Endpoint), st.binary(max_size=50), CUTS)
def test_a_request_is_understood_however_it_is_cut(pieces, command: Command, destination: Endpoint, early: bytes, cuts):
    data = bytes((5, 1, 0, 5, command, 0)) + encode_address(destination) + early
    assert serve(pieces(data, cuts)) == ([CommandRequested(command, destination)], None, b"\x05\x00", early)


@given(st.binary(max_size=255), st.binary(max_size=255), st.from_type(Endpoint), CUTS)
def test_everything_in_one_write_with_a_password(pieces, username: bytes, password: bytes, destination, cuts):
    message = bytes((1, len(username))) + username + bytes((len(password),)) + password
    data = b"\x05\x02\x00\x02" + message + b"\x05\x01\x00" + encode_address(destination)
    events, error, answers, _ = serve(pieces(data, cuts))
    assert events == [PasswordOffered(username, password), CommandRequested(Command.CONNECT, destination)]
    assert error is None
    assert answers == b"\x05\x02\x01\x00"
    assert serve(pieces(data, cuts), password_is_right=False) == (events[:1], None, b"\x05\x02\x01\x01", b"")


@given(PLAUSIBLE, st.integers(0, 300))
def test_what_was_answered_to_a_beginning_stands(data: bytes, size: int):
    events, _, answers, _ = serve([data[:size]])
    longer_events, _, longer_answers, _ = serve([data])
    assert longer_events[: len(events)] == events
    assert longer_answers.startswith(answers)


@pytest.mark.parametrize(
    ("allow_none", "allow_password", "offered", "answer"),
    [
        (True, False, "0100", "0500"),
        (True, True, "020002", "0502"),
        (True, True, "020200", "0502"),
        (True, True, "0100", "0500"),
        (False, True, "020002", "0502"),
        (False, True, "0100", "05ff"),
        (True, False, "0102", "05ff"),
        (False, False, "03000102", "05ff"),
        (True, True, "018d", "05ff"),
        (True, True, "028d00", "0500"),
        (True, True, "00", "05ff"),
        (True, True, "ff" + "80" * 254 + "00", "0500"),
    ],
)
def test_the_method_is_chosen_among_those_both_sides_allow(allow_none, allow_password, offered, answer):
    server = Socks5Server(allow_none=allow_none, allow_password=allow_password)
    greeting = bytes.fromhex("05" + offered)
    if answer == "05ff":
        with pytest.raises(ProtocolError) as caught:
            server.receive(greeting)
        assert caught.value.reason == "method"
        assert not server.wants_data
    else:
        assert server.receive(greeting) == []
        assert server.wants_data
    assert server.data_to_send().hex() == answer
    assert server.data_to_send() == b""


def requested() -> Socks5Server:
    server = Socks5Server(allow_none=True, allow_password=False)
    server.receive(bytes.fromhex("05010005010001c00002010050") + b"early")
    server.data_to_send()
    return server


@pytest.mark.parametrize(
    ("bound", "address"),
    [
        (Endpoint(IPv4Address("198.51.100.1"), 40000), "01c63364019c40"),
        (Endpoint(IPv6Address("2001:db8::1"), 40000), "0420010db80000000000000000000000019c40"),
        (Endpoint("proxy", 1), "030570726f78790001"),
    ],
)
def test_a_granted_request(bound, address):
    server = requested()
    server.reply(ReplyCode.SUCCEEDED, bound)
    assert server.data_to_send().hex() == "050000" + address
    assert not server.wants_data
    assert server.take_trailing() == b"early"
    assert server.take_trailing() == b""


@pytest.mark.parametrize("code", [code for code in ReplyCode if code is not ReplyCode.SUCCEEDED])
def test_a_refused_request(code):
    server = requested()
    server.reply(code)
    assert server.data_to_send() == bytes((5, code, 0, 1)) + bytes(6)
    assert not server.wants_data
    with pytest.raises(InvalidState):
        server.take_trailing()


def test_early_bytes_can_be_taken_before_the_reply():
    server = requested()
    assert server.take_trailing() == b"early"
    server.reply(ReplyCode.SUCCEEDED)
    assert server.take_trailing() == b""


def test_calls_at_the_wrong_time_are_refused_and_change_nothing():
    server = Socks5Server(allow_none=True, allow_password=True)
    with pytest.raises(InvalidState, match="GREETING"):
        server.reply(ReplyCode.SUCCEEDED)
    with pytest.raises(InvalidState):
        server.take_trailing()
    server.receive(b"\x05\x01\x02")
    with pytest.raises(InvalidState, match="PASSWORD"):
        server.accept_password()
    server.receive(b"\x01\x01a\x01b")
    with pytest.raises(InvalidState, match="does not want data"):
        server.receive(b"x")
    assert server.accept_password() == []
    with pytest.raises(InvalidState):
        server.reject_password()
    assert len(server.receive(b"\x05\x01\x00" + encode_address(Endpoint("a.example", 1)))) == 1
    with pytest.raises(InvalidState, match="does not want data"):
        server.receive(b"x")
    server.reply(ReplyCode.SUCCEEDED)
    with pytest.raises(InvalidState):
        server.reply(ReplyCode.SUCCEEDED)
    with pytest.raises(InvalidState):
        server.receive(b"x")


def test_a_password_is_not_shown():
    assert "hunter2" not in repr(PasswordOffered(b"alice", b"hunter2"))


def test_what_a_connection_holds_is_bounded_by_one_message():
    longest = b"\x05\xff" + b"\x02" * 255, b"\x01\xff" + b"u" * 255 + b"\xff" + b"p" * 255
    server = Socks5Server(allow_none=False, allow_password=True)
    server.receive(longest[0])
    assert server.receive(longest[1][:-1]) == []
    assert len(server.receive(longest[1][-1:])) == 1
    assert not server.wants_data


def test_vectors(vectors, each_byte):
    content = vectors("socks5.json")
    for case in content["valid"]:
        expected: list[Socks5ServerEvent] = [
            PasswordOffered(bytes.fromhex(event["username"]), bytes.fromhex(event["password"]))
            if event["event"] == "password"
            else CommandRequested(Command[event["command"]], Endpoint.parse(event["destination"]))
            for event in case["events"]
        ]
        data = bytes.fromhex(case["bytes"])
        for pieces in ([data], list(each_byte(data))):
            outcome = serve(pieces)
            trailing = bytes.fromhex(case["trailing"])
            assert outcome == (expected, None, bytes.fromhex(case["answers"]), trailing), case["name"]
    for case in content["invalid"]:
        server = Socks5Server(allow_none=True, allow_password=True)
        with pytest.raises(ProtocolError) as caught:
            server.receive(bytes.fromhex(case["bytes"]))
        assert caught.value.reason == case["error"], case["name"]
        assert server.data_to_send().hex() == case["answers"], case["name"]
        assert not server.wants_data, case["name"]
