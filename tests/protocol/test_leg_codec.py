from __future__ import annotations

import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msocks.errors import InvalidState, ProtocolError
from msocks.protocol import leg
from msocks.protocol.leg import LegReply, LegRequest, LegStatus, ReceivedReply
from msocks.protocol.leg_reply_codec import METHOD_SELECTED, REPLY_BYTES, LegReplyDecoder, encode_reply
from msocks.protocol.leg_request_codec import (
    REQUEST_BYTES,
    SHORTEST_REQUEST_BYTES,
    LegRequestDecoder,
    SignedRequest,
    encode_request,
)
from msocks.values.endpoint import Endpoint
from msocks.values.ids import AssociationId, SessionId

KEY_UP = bytes(range(32))
KEY_DOWN = bytes(range(32, 64))
CUTS = st.lists(st.integers(0, 1000), max_size=8)
SOME_REQUEST = encode_request(
    leg.Query(
        association=AssociationId(b"a" * 16), leg_number=1, expires_ms=2, session=SessionId(b"s" * 16), generation=3
    ),
    KEY_UP,
)
# Bytes that get past the first checks, and then are anything.
PLAUSIBLE_REQUESTS = st.builds(
    lambda command, rest: bytes.fromhex("05018d01") + bytes([command]) + rest,
    st.sampled_from([0x01, 0x02, 0x81, 0x82, 0x83]),
    st.binary(min_size=86, max_size=400),
)
PLAUSIBLE_REPLIES = st.binary(min_size=REPLY_BYTES - 3, max_size=REPLY_BYTES + 20).map(bytes.fromhex("058d01").__add__)

Outcome = tuple[Any, str | None, bytes]


def read(decoder: LegRequestDecoder | LegReplyDecoder, pieces: list[bytes]) -> Outcome:
    """Result, error, and what belongs to the application: as much of it as a reader that stops there would have."""
    for index, piece in enumerate(pieces):
        try:
            result = decoder.receive(piece)
        except ProtocolError as error:
            return None, str(error), b""
        if result is not None:
            return result, None, decoder.take_trailing() + b"".join(pieces[index + 1 :])
    return None, None, b""


@given(st.from_type(LegRequest), st.binary(max_size=50), CUTS)
def test_a_request_comes_out_as_it_went_in_however_it_is_cut(pieces, request_: LegRequest, early: bytes, cuts):
    encoded = encode_request(request_, KEY_UP)
    received, error, trailing = read(LegRequestDecoder(), pieces(encoded + early, cuts))
    assert error is None
    assert received.request == request_
    assert received.mac == encoded[-32:]
    assert received.verify(KEY_UP)
    assert not received.verify(KEY_DOWN)
    assert trailing == early


@given(st.from_type(LegReply), st.binary(max_size=50), CUTS)
def test_a_reply_comes_out_as_it_went_in_however_it_is_cut(pieces, reply: LegReply, early: bytes, cuts):
    maced = reply.status not in leg.UNVERIFIABLE_STATUSES
    encoded = encode_reply(reply, SOME_REQUEST[-32:], KEY_DOWN if maced else None)
    assert len(encoded) == REPLY_BYTES
    decoder = LegReplyDecoder(SOME_REQUEST, KEY_DOWN)
    assert read(decoder, pieces(encoded + early, cuts)) == (ReceivedReply(reply, verified=maced), None, early)


@given(PLAUSIBLE_REQUESTS | st.binary(max_size=400), CUTS)
def test_random_bytes_are_a_request_or_a_defined_error_whatever_the_cuts(pieces, data: bytes, cuts):
    whole = read(LegRequestDecoder(), [data])
    assert read(LegRequestDecoder(), pieces(data, cuts)) == whole
    if whole[0] is not None:
        assert not whole[0].verify(KEY_UP)


@given(PLAUSIBLE_REPLIES | st.binary(max_size=200), CUTS)
def test_random_bytes_are_a_reply_or_a_defined_error_whatever_the_cuts(pieces, data: bytes, cuts):
    whole = read(LegReplyDecoder(SOME_REQUEST, KEY_DOWN), [data])
    assert read(LegReplyDecoder(SOME_REQUEST, KEY_DOWN), pieces(data, cuts)) == whole
    if whole[0] is not None:
        assert not whole[0].verified


@given(st.from_type(LegRequest), st.data())
def test_no_bit_of_a_request_can_be_changed(request_: LegRequest, data: st.DataObject):
    encoded = bytearray(encode_request(request_, KEY_UP))
    bit = data.draw(st.integers(0, len(encoded) * 8 - 1))
    encoded[bit // 8] ^= 1 << bit % 8
    received, error, _ = read(LegRequestDecoder(), [bytes(encoded)])
    assert error is not None or received is None or not received.verify(KEY_UP)


@given(st.from_type(LegReply), st.integers(0, REPLY_BYTES * 8 - 1))
def test_no_bit_of_a_reply_can_be_changed(reply: LegReply, bit: int):
    maced = reply.status not in leg.UNVERIFIABLE_STATUSES
    encoded = bytearray(encode_reply(reply, SOME_REQUEST[-32:], KEY_DOWN if maced else None))
    encoded[bit // 8] ^= 1 << bit % 8
    received, error, _ = read(LegReplyDecoder(SOME_REQUEST, KEY_DOWN), [bytes(encoded)])
    assert error is not None or not received.verified


@given(st.from_type(LegRequest), st.data())
def test_a_truncated_request_is_waited_for(request_: LegRequest, data: st.DataObject):
    encoded = encode_request(request_, KEY_UP)
    size = data.draw(st.integers(0, len(encoded) - 1))
    decoder = LegRequestDecoder()
    assert decoder.receive(encoded[:size]) is None
    assert 0 < decoder.bytes_needed <= len(encoded) - size
    with pytest.raises(InvalidState, match="is not complete"):
        decoder.take_trailing()


@given(st.from_type(LegRequest), st.binary(max_size=400))
def test_a_reader_that_asks_how_much_is_needed_takes_not_one_byte_too_many(request_: LegRequest, early: bytes):
    encoded = encode_request(request_, KEY_UP)
    stream = encoded + early
    decoder = LegRequestDecoder()
    position, received, reads = 0, None, 0
    while decoder.bytes_needed:
        needed = decoder.bytes_needed
        received = decoder.receive(stream[position : position + needed])
        position += needed
        reads += 1
    assert received is not None
    assert position == len(encoded)
    assert decoder.take_trailing() == b""
    assert reads <= 2


def test_a_reply_reader_needs_one_read():
    decoder = LegReplyDecoder(SOME_REQUEST, KEY_DOWN)
    assert decoder.bytes_needed == REPLY_BYTES
    assert decoder.receive(encode_reply(LegReply(status=LegStatus.OK), SOME_REQUEST[-32:], KEY_DOWN)) is not None
    assert decoder.bytes_needed == 0


def test_after_the_message_the_bytes_are_the_applications():
    requests = LegRequestDecoder()
    assert requests.receive(SOME_REQUEST) is not None
    with pytest.raises(InvalidState, match="the request is complete"):
        requests.receive(b"x")
    replies = LegReplyDecoder(SOME_REQUEST, KEY_DOWN)
    replies.receive(encode_reply(LegReply(status=LegStatus.OK), SOME_REQUEST[-32:], KEY_DOWN) + b"banner")
    with pytest.raises(InvalidState, match="the reply is complete"):
        replies.receive(b"x")
    assert replies.take_trailing() == b"banner"
    assert replies.take_trailing() == b""


def test_sizes_are_those_of_the_protocol_page():
    assert {command.name: size for command, size in REQUEST_BYTES.items()} == {
        "CONNECT": 351,
        "BIND": 351,
        "RECONNECT": 131,
        "QUERY": 91,
        "CLOSE": 107,
    }
    assert SHORTEST_REQUEST_BYTES == 91
    assert REPLY_BYTES == 106
    assert METHOD_SELECTED == b"\x05\x8d"


def test_a_reply_belongs_to_one_request():
    other = encode_request(
        leg.Query(
            association=AssociationId(b"a" * 16), leg_number=2, expires_ms=2, session=SessionId(b"s" * 16), generation=3
        ),
        KEY_UP,
    )
    encoded = encode_reply(LegReply(status=LegStatus.ENDED_RESET), other[-32:], KEY_DOWN)
    received = LegReplyDecoder(SOME_REQUEST, KEY_DOWN).receive(encoded)
    assert received is not None
    assert not received.verified
    assert not received.ends_session


@pytest.mark.parametrize("status", LegStatus)
def test_the_proxy_cannot_forget_or_invent_a_mac(status):
    reply = LegReply(status=status, socks_reply=1 if status is LegStatus.REFUSED else 0)
    wrong = KEY_DOWN if status in leg.UNVERIFIABLE_STATUSES else None
    with pytest.raises(ValueError, match="is answered with"):
        encode_reply(reply, SOME_REQUEST[-32:], wrong)


def test_keys_and_macs_have_32_bytes():
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        LegReplyDecoder(SOME_REQUEST, b"short")
    with pytest.raises(ValueError, match="a MAC has 32 bytes"):
        encode_reply(LegReply(status=LegStatus.OK), b"short", KEY_DOWN)
    signed = LegRequestDecoder().receive(SOME_REQUEST)
    assert signed is not None
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        signed.verify(b"short")


def test_macs_are_compared_in_constant_time(monkeypatch):
    compared = []

    def compare_digest(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    signed = LegRequestDecoder().receive(SOME_REQUEST)
    assert signed is not None
    assert signed.verify(KEY_UP)
    reply = encode_reply(LegReply(status=LegStatus.OK), SOME_REQUEST[-32:], KEY_DOWN)
    LegReplyDecoder(SOME_REQUEST, KEY_DOWN).receive(reply)
    assert compared == [(SOME_REQUEST[-32:], SOME_REQUEST[-32:]), (reply[-32:], reply[-32:])]


def test_a_datapath_reason_of_a_later_version_reads_as_unspecified():
    encoded = bytearray(encode_reply(LegReply(status=LegStatus.OK), SOME_REQUEST[-32:], KEY_DOWN))
    encoded[7] = 0xEE
    received = LegReplyDecoder(SOME_REQUEST, KEY_DOWN).receive(bytes(encoded))
    assert received is not None
    assert received.reply.datapath_reason is leg.DatapathReason.UNSPECIFIED


@pytest.mark.parametrize("answer", ["05ff", "0500", "48", "16030300"])
def test_a_declined_method_is_no_verdict(answer):
    with pytest.raises(ProtocolError, match="what answers at the proxy's address") as caught:
        LegReplyDecoder(SOME_REQUEST, KEY_DOWN).receive(bytes.fromhex(answer))
    assert caught.value.reason == "method"
    assert caught.value.remedy


# --- vectors ----------------------------------------------------------------------------------------------------------


def request_of(fields: dict[str, Any]) -> LegRequest:
    common = {
        "association": AssociationId.from_hex(fields["association"]),
        "leg_number": fields["leg_number"],
        "expires_ms": fields["expires_ms"],
        "session": SessionId.from_hex(fields["session"]),
        "generation": fields["generation"],
    }
    match fields["command"]:
        case "CONNECT":
            return leg.Connect(
                **common,
                destination=Endpoint.parse(fields["destination"]),
                middlebox=fields.get("middlebox", False),
            )
        case "BIND":
            return leg.Bind(**common, destination=Endpoint.parse(fields["destination"]))
        case "RECONNECT":
            return leg.Reconnect(
                **common,
                received=fields["received"],
                upstream_from=fields["upstream_from"],
                down_fin_at=fields.get("down_fin_at"),
                up_fin_at=fields.get("up_fin_at"),
                handover_from=fields.get("handover_from", 0),
                first_flight=fields.get("first_flight", 0),
                middlebox=fields.get("middlebox", False),
            )
        case "QUERY":
            return leg.Query(**common)
        case _:
            return leg.Close(**common, mode=leg.CloseMode[fields["mode"]], up_fin_at=fields.get("up_fin_at"))


def reply_of(fields: dict[str, Any]) -> LegReply:
    fields = dict(fields)
    bound = fields.pop("bound", None)
    return LegReply(
        status=LegStatus[fields.pop("status")],
        bound=None if bound is None else Endpoint.parse(bound),
        datapath=leg.DatapathKind[fields.pop("datapath", "NONE")],
        datapath_reason=leg.DatapathReason[fields.pop("datapath_reason", "UNSPECIFIED")],
        **fields,
    )


def test_request_vectors(vectors):
    content = vectors("leg.json")
    key = bytes.fromhex(content["key_up"])
    for case in content["requests"]:
        data = bytes.fromhex(case["bytes"])
        assert encode_request(request_of(case["fields"]), key) == data, case["name"]
        received = LegRequestDecoder().receive(data)
        assert isinstance(received, SignedRequest), case["name"]
        assert received.request == request_of(case["fields"]), case["name"]
        assert received.mac.hex() == case["mac"], case["name"]
        assert received.verify(key), case["name"]
    for case in content["forged_requests"]:
        received = LegRequestDecoder().receive(bytes.fromhex(case["bytes"]))
        assert received is not None, case["name"]
        assert not received.verify(key), case["name"]
    for case in content["invalid_requests"]:
        with pytest.raises(ProtocolError) as caught:
            LegRequestDecoder().receive(bytes.fromhex(case["bytes"]))
        assert caught.value.reason == case["error"], case["name"]


def test_reply_vectors(vectors):
    content = vectors("leg.json")
    key = bytes.fromhex(content["key_down"])
    for case in content["replies"]:
        data, request_ = bytes.fromhex(case["bytes"]), bytes.fromhex(case["request"])
        reply = reply_of(case["fields"])
        assert encode_reply(reply, request_[-32:], key if case["verified"] else None) == data, case["name"]
        received = LegReplyDecoder(request_, key).receive(data)
        assert received == ReceivedReply(reply, case["verified"]), case["name"]
        assert received.ends_session is case["ends_session"], case["name"]
    for case in content["unverified_replies"]:
        received = LegReplyDecoder(bytes.fromhex(case["request"]), key).receive(bytes.fromhex(case["bytes"]))
        assert received is not None, case["name"]
        assert not received.verified, case["name"]
    for case in content["invalid_replies"]:
        with pytest.raises(ProtocolError) as caught:
            LegReplyDecoder(bytes.fromhex(case["request"]), key).receive(bytes.fromhex(case["bytes"]))
        assert caught.value.reason == case["error"], case["name"]


def test_every_status_has_a_vector(vectors):
    assert {case["fields"]["status"] for case in vectors("leg.json")["replies"]} == set(LegStatus.__members__)
