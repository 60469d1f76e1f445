from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msocks.errors import EndReason, InvalidState, ProtocolError
from msocks.protocol import control, inbound
from msocks.protocol.control import ControlMessage
from msocks.protocol.control_channel import ControlChannel, Side
from msocks.protocol.control_codec import MAX_BODY_BYTES, FrameDecoder, UnknownMessage, encode_message
from msocks.values.endpoint import Endpoint
from msocks.values.ids import AssociationId, SessionId

CUTS = st.lists(st.integers(0, 3000), max_size=8)
OPENINGS = st.from_type(control.Hello) | st.from_type(control.Welcome) | st.from_type(control.Refused)
MESSAGES = OPENINGS | st.from_type(control.Park) | st.from_type(control.Drain) | st.just(control.Goodbye())
UNKNOWN_FRAMES = st.builds(
    lambda kind, body: len(body).to_bytes(2, "big") + bytes([kind]) + body,
    st.integers(0x15, 255),
    st.binary(max_size=9),
)
PLAUSIBLE = st.lists(
    MESSAGES.map(encode_message)
    | UNKNOWN_FRAMES
    | st.builds(lambda kind, body: bytes([0, len(body), kind]) + body, st.integers(0, 0x14), st.binary(max_size=120))
    | st.binary(max_size=10),
    max_size=5,
).map(b"".join)

SESSION, OTHER_SESSION = SessionId(b"s" * 16), SessionId(b"o" * 16)
HELLO = control.Hello(
    user="alice",
    secret=b"x" * 32,
    association=AssociationId(b"a" * 16),
    smallest_mtu=1500,
    link="wlan0",
    agent_name="msocks",
    agent_version="1",
)
WELCOME = control.Welcome(
    association=HELLO.association,
    key_up=b"u" * 32,
    key_down=b"d" * 32,
    proxy_ms=1,
    detach_grace_s=2,
    max_sessions=3,
    observed=Endpoint.parse("192.0.2.1:40000"),
    server_version="1",
)
REFUSED = control.Refused(control.RefusalCode.AUTHENTICATION, "no")
PING, PONG = control.Ping(1, 2), control.Pong(1, 2)
LISTENING = inbound.Listening(1, inbound.ListenStatus.LIMIT)
PARK = control.Park((control.ParkedLeg(SESSION, 2, 1000),))


def read(receiver: FrameDecoder | ControlChannel, pieces: list[bytes]) -> tuple[list[Any], str | None]:
    """Messages up to the first error, and the error."""
    messages: list[Any] = []
    try:
        for piece in pieces:
            messages.extend(receiver.receive(piece))
    except ProtocolError as error:
        return messages, str(error)
    return messages, None


@given(st.lists(MESSAGES, max_size=5), CUTS)
def test_messages_come_out_as_they_went_in_however_they_are_cut(pieces, messages: list[ControlMessage], cuts):
    data = b"".join(map(encode_message, messages))
    assert read(FrameDecoder(), pieces(data, cuts)) == (messages, None)


@given(PLAUSIBLE, CUTS)
def test_messages_and_errors_do_not_depend_on_the_cuts(pieces, data: bytes, cuts):
    assert read(FrameDecoder(), pieces(data, cuts)) == read(FrameDecoder(), [data])
    for side in Side:
        assert read(ControlChannel(side), pieces(data, cuts)) == read(ControlChannel(side), [data])


@given(MESSAGES, st.binary(max_size=20))
def test_bytes_behind_the_fields_of_a_message_are_ignored(message: ControlMessage, later: bytes):
    frame = encode_message(message)
    extended = (len(frame) - 3 + len(later)).to_bytes(2, "big") + frame[2:] + later
    assert read(FrameDecoder(), [extended]) == ([message], None)


@given(MESSAGES.filter(lambda message: not isinstance(message, control.Goodbye)), st.data())
def test_a_body_that_is_too_short_is_refused(message: ControlMessage, data: st.DataObject):
    frame = encode_message(message)
    size = data.draw(st.integers(0, len(frame) - 4))
    messages, error = read(FrameDecoder(), [size.to_bytes(2, "big") + frame[2 : 3 + size]])
    assert messages == []
    assert error is not None


@given(UNKNOWN_FRAMES)
def test_unknown_types_are_told_by_the_decoder_and_skipped_by_the_channel(frame: bytes):
    assert read(FrameDecoder(), [frame]) == ([UnknownMessage(frame[2], len(frame) - 3)], None)
    channel = ControlChannel(Side.PROXY)
    stream = encode_message(HELLO) + frame + encode_message(PING)
    assert read(channel, [stream]) == ([HELLO, PING], None)
    messages, error = read(ControlChannel(Side.PROXY), [frame])
    assert messages == []
    assert "the first message has the unknown type" in str(error)


def test_a_frame_is_refused_at_its_announcement():
    decoder = FrameDecoder()
    assert list(decoder.receive(MAX_BODY_BYTES.to_bytes(2, "big"))) == []
    with pytest.raises(ProtocolError, match="announces 16385 bytes") as caught:
        list(FrameDecoder().receive((MAX_BODY_BYTES + 1).to_bytes(2, "big")))
    assert caught.value.reason == "length"


def test_the_longest_lists_fit_into_a_frame():
    legs = tuple(control.ParkedLeg(SESSION, 1, number) for number in range(control.MAX_LISTED_SESSIONS))
    listed = tuple((SESSION, number) for number in range(control.MAX_LISTED_SESSIONS))
    for message in (control.Park(legs), control.Parked(listed)):
        assert read(FrameDecoder(), [encode_message(message)]) == ([message], None)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: control.Park(()), "1 to 512"),
        (lambda: control.Park(PARK.legs * 513), "1 to 512"),
        (lambda: control.Parked(((SESSION, 1),) * 513), "0 to 512"),
        (lambda: control.Parked(((SESSION, -1),)), "generation"),
        (lambda: control.ParkedLeg(SESSION, 1, 2**63), "R is"),
        (lambda: control.ReceivedStream(SESSION, 1, 2**63), "received bytes"),
        (lambda: control.ReceivedStream(SESSION, -1, 1), "generation"),
        (lambda: control.Received((control.ReceivedStream(SESSION, 1, 2),) * 513), "0 to 512"),
        (lambda: control.ParkedLeg(SESSION, 2**32, 1), "generation"),
        (lambda: inbound.Listen(0), "numbered from 1"),
        (lambda: inbound.Unlisten(2**32), "number"),
        (lambda: inbound.Listen(1, 65536), "port"),
        (lambda: inbound.Listening(1, inbound.ListenStatus.OPEN), "has an address"),
        (lambda: inbound.Listening(1, inbound.ListenStatus.LIMIT, WELCOME.observed), "has an address"),
        (lambda: inbound.Listening(1, inbound.ListenStatus.OPEN, Endpoint("a.example", 1)), "is a name"),
        (lambda: inbound.Listening(1, inbound.ListenStatus.LIMIT, None, "a\nb"), "unprintable"),
        (lambda: inbound.Incoming(1, SESSION, Endpoint("a.example", 1), WELCOME.observed), "is a name"),
        (lambda: control.LegAccepted(SESSION, 1, 2**64), "leg number"),
        (lambda: control.Ping(2**64, 0), "nonce"),
        (lambda: control.Pong(0, -1), "time"),
        (lambda: control.Refused(control.RefusalCode.LIMIT, "x" * 1025), "more than 1024"),
        (lambda: control.Refused(control.RefusalCode.LIMIT, "a\nb"), "unprintable"),
        (lambda: replace(HELLO, secret=b"short"), "the secret has 5 bytes"),
        (lambda: replace(HELLO, user=""), "the user name"),
        (lambda: replace(HELLO, smallest_mtu=65536), "MTU"),
        (lambda: replace(HELLO, link="x" * 256), "more than 255"),
        (lambda: replace(HELLO, agent_version="\0"), "unprintable"),
        (lambda: replace(WELCOME, key_up=b""), "key_up has 0 bytes"),
        (lambda: replace(WELCOME, key_down=WELCOME.key_up), "are equal"),
        (lambda: replace(WELCOME, observed=Endpoint("a.example", 1)), "is a name"),
        (lambda: replace(WELCOME, max_sessions=2**32), "session limit"),
    ],
)
def test_impossible_messages(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


def test_secrets_and_keys_are_not_shown():
    assert "xxx" not in repr(HELLO)
    assert "uuu" not in repr(WELCOME)
    assert "ddd" not in repr(WELCOME)


# --- the channel ------------------------------------------------------------------------------------------------------


def opened() -> tuple[ControlChannel, ControlChannel]:
    client, proxy = ControlChannel(Side.CLIENT), ControlChannel(Side.PROXY)
    assert list(proxy.receive(client.send(HELLO))) == [HELLO]
    assert (client.is_open, proxy.is_open) == (False, False)
    assert list(client.receive(proxy.send(WELCOME))) == [WELCOME]
    assert (client.is_open, proxy.is_open) == (True, True)
    return client, proxy


@given(st.lists(st.from_type(control.Park)), st.lists(st.from_type(control.Drain)))
def test_an_open_channel_carries_each_sides_messages(ups: list[ControlMessage], downs: list[ControlMessage]):
    client, proxy = opened()
    assert list(proxy.receive(b"".join(map(client.send, ups)))) == ups
    assert list(client.receive(b"".join(map(proxy.send, downs)))) == downs


@pytest.mark.parametrize("last", [control.Goodbye(), REFUSED])
def test_after_the_last_word_a_side_is_silent(last):
    client, proxy = opened()
    assert list(client.receive(proxy.send(last))) == [last]
    assert not client.is_open
    assert not proxy.is_open
    with pytest.raises(InvalidState, match="has said its last word"):
        proxy.send(PING)
    # What the other side had under way still arrives, and it may say goodbye too.
    assert list(proxy.receive(client.send(PONG) + client.send(control.Goodbye()))) == [PONG, control.Goodbye()]
    with pytest.raises(ProtocolError, match="has said its last word") as caught:
        list(client.receive(encode_message(PING)))
    assert caught.value.reason == "order"


def test_a_refusal_instead_of_a_welcome():
    client, proxy = ControlChannel(Side.CLIENT), ControlChannel(Side.PROXY)
    # The client need not wait for the answer; what it wrote early is read and comes to nothing.
    assert list(proxy.receive(client.send(HELLO) + client.send(PARK))) == [HELLO, PARK]
    assert list(client.receive(proxy.send(REFUSED))) == [REFUSED]
    assert not client.is_open


@pytest.mark.parametrize("message", [PING, PONG, PARK, WELCOME, REFUSED, control.Goodbye()])
def test_a_client_opens_with_hello(message):
    with pytest.raises(InvalidState):
        ControlChannel(Side.CLIENT).send(message)
    with pytest.raises(ProtocolError, match="it must not say") as caught:
        list(ControlChannel(Side.PROXY).receive(encode_message(message)))
    assert caught.value.reason == "order"


@pytest.mark.parametrize("message", [PING, HELLO, control.Goodbye(), control.SessionEnded(SESSION, EndReason.EXPIRED)])
def test_a_proxy_opens_with_welcome_or_refused(message):
    client, proxy = ControlChannel(Side.CLIENT), ControlChannel(Side.PROXY)
    list(proxy.receive(client.send(HELLO)))
    with pytest.raises(InvalidState):
        proxy.send(message)
    with pytest.raises(ProtocolError) as caught:
        list(client.receive(encode_message(message)))
    assert caught.value.reason == "order"


def test_a_proxy_does_not_speak_first():
    with pytest.raises(InvalidState, match="before the client's Hello"):
        ControlChannel(Side.PROXY).send(WELCOME)


@pytest.mark.parametrize(
    "message", [HELLO, WELCOME, control.Drain(Endpoint("a.example", 1)), control.Parked(()), LISTENING]
)
def test_what_a_client_never_says_on_an_open_channel(message):
    client, proxy = opened()
    with pytest.raises(InvalidState):
        client.send(message)
    with pytest.raises(ProtocolError):
        list(proxy.receive(encode_message(message)))


@pytest.mark.parametrize("message", [HELLO, WELCOME, PARK, inbound.Listen(1)])
def test_what_a_proxy_never_says_on_an_open_channel(message):
    client, proxy = opened()
    with pytest.raises(InvalidState):
        proxy.send(message)
    with pytest.raises(ProtocolError):
        list(client.receive(encode_message(message)))


def test_messages_before_an_error_are_given_first():
    _, proxy = opened()
    messages = proxy.receive(encode_message(PING) + encode_message(WELCOME))
    assert next(messages) == PING
    with pytest.raises(ProtocolError):
        next(messages)


# --- vectors ----------------------------------------------------------------------------------------------------------


def message_of(fields: dict[str, Any]) -> ControlMessage:
    fields = dict(fields)
    kind = fields.pop("type")
    for name in ("secret", "key_up", "key_down"):
        if name in fields:
            fields[name] = bytes.fromhex(fields[name])
    if "association" in fields:
        fields["association"] = AssociationId.from_hex(fields["association"])
    if "session" in fields:
        fields["session"] = SessionId.from_hex(fields["session"])
    match kind:
        case "WELCOME":
            return control.Welcome(**fields | {"observed": Endpoint.parse(fields["observed"])})
        case "REFUSED":
            return control.Refused(control.RefusalCode(fields["code"]), fields["text"])
        case "SESSION_ENDED":
            return control.SessionEnded(fields["session"], EndReason(fields["reason"]))
        case "PARK":
            return control.Park(
                tuple(
                    control.ParkedLeg(SessionId.from_hex(each["session"]), each["generation"], each["received"])
                    for each in fields["legs"]
                )
            )
        case "PARKED":
            return control.Parked(
                tuple((SessionId.from_hex(each["session"]), each["generation"]) for each in fields["sessions"])
            )
        case "RECEIVED":
            return control.Received(
                tuple(
                    control.ReceivedStream(
                        SessionId.from_hex(each["session"]),
                        each["generation"],
                        each["received"],
                        each["at_end"],
                        each["middlebox"],
                    )
                    for each in fields["streams"]
                )
            )
        case "LISTEN":
            return inbound.Listen(**fields | {"peer": Endpoint.parse(fields["peer"])})
        case "LISTENING":
            bound = None if fields["bound"] is None else Endpoint.parse(fields["bound"])
            return inbound.Listening(**fields | {"status": inbound.ListenStatus(fields["status"]), "bound": bound})
        case "INCOMING":
            ends = {name: Endpoint.parse(fields[name]) for name in ("peer", "bound")}
            return inbound.Incoming(**fields | ends)
        case "DRAIN":
            return control.Drain(Endpoint.parse(fields["endpoint"]))
    plain = {
        "HELLO": control.Hello,
        "PING": control.Ping,
        "PONG": control.Pong,
        "LEG_ACCEPTED": control.LegAccepted,
        "GOODBYE": control.Goodbye,
        "UNLISTEN": inbound.Unlisten,
    }
    message: ControlMessage = plain[kind](**fields)
    return message


def test_vectors(vectors):
    content = vectors("control.json")
    for case in content["valid"]:
        message, data = message_of(case["fields"]), bytes.fromhex(case["bytes"])
        assert encode_message(message) == data, case["name"]
        assert read(FrameDecoder(), [data]) == ([message], None), case["name"]
    for case in content["lenient"]:
        expected = [message_of(case["fields"])]
        assert read(FrameDecoder(), [bytes.fromhex(case["bytes"])]) == (expected, None), case["name"]
    for case in content["ignored"]:
        stream = encode_message(HELLO) + bytes.fromhex(case["bytes"]) + encode_message(PING)
        assert read(ControlChannel(Side.PROXY), [stream]) == ([HELLO, PING], None), case["name"]
    for case in content["invalid"]:
        with pytest.raises(ProtocolError) as caught:
            list(FrameDecoder().receive(bytes.fromhex(case["bytes"])))
        assert caught.value.reason == case["error"], case["name"]


def test_every_type_has_a_vector(vectors):
    assert {case["fields"]["type"] for case in vectors("control.json")["valid"]} == set(control.MessageType.__members__)
