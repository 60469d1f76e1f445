from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.protocol.conftest import ADDRESS_ENDPOINTS, ASSOCIATIONS, U64

from msocks.errors import ProtocolError
from msocks.protocol.probe import PROBE_BYTES, Probe, encode_probe, probe_key
from msocks.protocol.udp_flow import (
    NOTE_BYTES,
    OVERHEAD_BYTES,
    Attach,
    Detach,
    Down,
    FlowStatus,
    State,
    UdpFlowMessage,
    Up,
    decode_udp_flow,
    encode_udp_flow,
    is_udp_flow,
    udp_flow_key,
)
from msocks.values.endpoint import Endpoint
from msocks.values.ids import AssociationId

KEY = b"k" * 32
ASSOCIATION = AssociationId(b"a" * 16)
COUNTED = st.integers(1, 2**32 - 1)
COMMON = (ASSOCIATIONS, COUNTED, COUNTED, U64)
PAYLOADS = st.binary(max_size=200)
NOTES = st.builds(Attach, *COMMON) | st.builds(State, *COMMON, st.sampled_from(FlowStatus)) | st.builds(Detach, *COMMON)
DATAGRAMS = st.builds(Up, *COMMON, st.from_type(Endpoint), PAYLOADS) | st.builds(
    Down, *COMMON, ADDRESS_ENDPOINTS, PAYLOADS
)
MESSAGES = NOTES | DATAGRAMS


@given(MESSAGES)
def test_what_is_encoded_is_decoded_and_verified(message: UdpFlowMessage):
    datagram = encode_udp_flow(message, KEY)
    received = decode_udp_flow(datagram)
    assert received.message == message
    assert is_udp_flow(datagram)
    assert received.verify(KEY)
    assert not received.verify(udp_flow_key(KEY))


@given(MESSAGES, st.data())
def test_no_bit_can_be_changed(message: UdpFlowMessage, data: st.DataObject):
    datagram = bytearray(encode_udp_flow(message, KEY))
    bit = data.draw(st.integers(0, len(datagram) * 8 - 1))
    datagram[bit // 8] ^= 1 << bit % 8
    try:
        received = decode_udp_flow(bytes(datagram))
    except ProtocolError:
        return
    assert not received.verify(KEY)


@given(MESSAGES, st.data())
def test_what_is_cut_short_is_refused_or_not_verified(message: UdpFlowMessage, data: st.DataObject):
    datagram = encode_udp_flow(message, KEY)
    size = data.draw(st.integers(0, len(datagram) - 1))
    try:
        received = decode_udp_flow(datagram[:size])
    except ProtocolError:
        return
    assert not received.verify(KEY)


@given(NOTES, st.binary(min_size=1, max_size=70_000))
def test_a_note_that_is_too_long_is_refused(message: UdpFlowMessage, more: bytes):
    with pytest.raises(ProtocolError) as caught:
        decode_udp_flow(encode_udp_flow(message, KEY) + more)
    assert caught.value.reason == "length"


@given(st.binary(max_size=100) | st.binary(max_size=100).map(lambda data: b"\x01\x05\0\0" + data))
def test_any_datagram_is_read_or_a_defined_error(datagram: bytes):
    try:
        received = decode_udp_flow(datagram)
    except ProtocolError:
        return
    assert not received.verify(KEY)


@given(NOTES)
def test_an_answer_is_no_longer_than_what_it_answers(message: UdpFlowMessage):
    assert len(encode_udp_flow(message, KEY)) == NOTE_BYTES
    smallest = Up(ASSOCIATION, 1, 1, 1, Endpoint.parse("192.0.2.1:53"), b"")
    assert len(encode_udp_flow(smallest, KEY)) == OVERHEAD_BYTES + 7 >= NOTE_BYTES


def test_a_probe_is_none():
    probe = encode_probe(Probe(ASSOCIATION, 1, 1), probe_key(KEY))
    assert len(probe) == PROBE_BYTES
    assert not is_udp_flow(probe)
    assert not is_udp_flow(b"")


def test_impossible_messages():
    with pytest.raises(ValueError, match="counted from 1"):
        Attach(ASSOCIATION, 0, 1, 0)
    with pytest.raises(ValueError, match="counted from 1"):
        Detach(ASSOCIATION, 1, 0, 0)
    with pytest.raises(ValueError, match="flow"):
        Attach(ASSOCIATION, 2**32, 1, 0)
    with pytest.raises(ValueError, match="generation"):
        Attach(ASSOCIATION, 1, 2**32, 0)
    with pytest.raises(ValueError, match="number"):
        State(ASSOCIATION, 1, 1, 2**64, FlowStatus.OPEN)
    with pytest.raises(ValueError, match="is a name"):
        Down(ASSOCIATION, 1, 1, 1, Endpoint.parse("a.example:1"), b"")


def read(case: dict[str, Any]) -> UdpFlowMessage:
    fields = case["fields"]
    common = AssociationId.from_hex(fields["association"]), fields["flow"], fields["generation"], fields["number"]
    match case["type"]:
        case "attach":
            return Attach(*common)
        case "detach":
            return Detach(*common)
        case "state":
            return State(*common, FlowStatus(fields["status"]))
        case "up":
            return Up(*common, Endpoint.parse(fields["endpoint"]), bytes.fromhex(fields["payload"]))
        case _:
            return Down(*common, Endpoint.parse(fields["endpoint"]), bytes.fromhex(fields["payload"]))


def test_vectors(vectors):
    content = vectors("udp_flow.json")
    up, down = (bytes.fromhex(content[name]) for name in ("udp_key_up", "udp_key_down"))
    assert udp_flow_key(bytes.fromhex(content["key_up"])) == up
    assert udp_flow_key(bytes.fromhex(content["key_down"])) == down
    for case in content["valid"]:
        expected = read(case)
        key = down if isinstance(expected, State | Down) else up
        datagram = bytes.fromhex(case["bytes"])
        assert encode_udp_flow(expected, key) == datagram, case
        assert decode_udp_flow(datagram).message == expected, case
        assert decode_udp_flow(datagram).verify(key), case
    for case in content["lenient"]:
        received = decode_udp_flow(bytes.fromhex(case["bytes"]))
        assert received.verify(down)
        assert isinstance(received.message, State)
        assert received.message.status == case["status"], case["name"]
    for case in content["forged"]:
        assert not decode_udp_flow(bytes.fromhex(case["bytes"])).verify(up), case["name"]
    for case in content["invalid"]:
        with pytest.raises(ProtocolError) as caught:
            decode_udp_flow(bytes.fromhex(case["bytes"]))
        assert caught.value.reason == case["error"], case["name"]
