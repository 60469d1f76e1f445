from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msocks.errors import ProtocolError
from msocks.protocol.probe import (
    PROBE_BYTES,
    Position,
    PositionQuery,
    Probe,
    ProbeAnswer,
    ProbeMessage,
    decode_probe,
    encode_probe,
    probe_key,
)
from msocks.values.endpoint import Endpoint
from msocks.values.ids import AssociationId, SessionId

ASSOCIATION = AssociationId(b"a" * 16)
KEY = b"k" * 32


@given(st.from_type(Probe))
def test_what_is_encoded_is_decoded_and_verified(message: ProbeMessage):
    datagram = encode_probe(message, KEY)
    assert len(datagram) == PROBE_BYTES
    received = decode_probe(datagram)
    assert received.message == message
    assert received.verify(KEY)
    assert not received.verify(probe_key(KEY))


@given(st.from_type(Probe), st.integers(0, PROBE_BYTES * 8 - 1))
def test_no_bit_can_be_changed(message: ProbeMessage, bit: int):
    datagram = bytearray(encode_probe(message, KEY))
    datagram[bit // 8] ^= 1 << bit % 8
    try:
        received = decode_probe(bytes(datagram))
    except ProtocolError:
        return
    assert not received.verify(KEY)


@given(st.binary(max_size=100) | st.binary(min_size=PROBE_BYTES, max_size=PROBE_BYTES))
def test_any_datagram_is_a_probe_or_a_defined_error(datagram: bytes):
    try:
        received = decode_probe(datagram)
    except ProtocolError:
        return
    assert encode_probe(received.message, KEY)[:-16] == received.signed


@given(st.from_type(Probe), st.integers(0, PROBE_BYTES - 1))
def test_a_truncated_datagram_is_refused(message: ProbeMessage, size: int):
    with pytest.raises(ProtocolError, match="a probe has"):
        decode_probe(encode_probe(message, KEY)[:size])


def test_an_answer_is_as_long_as_its_probe():
    answer = ProbeAnswer(ASSOCIATION, 1, 2, Endpoint(IPv4Address(1), 3))
    assert len(encode_probe(answer, KEY)) == len(encode_probe(Probe(ASSOCIATION, 1, 2), KEY)) == 72
    session = SessionId(b"s" * 16)
    assert len(encode_probe(PositionQuery(ASSOCIATION, 1, session), KEY)) == 72
    assert len(encode_probe(Position(ASSOCIATION, 1, session, 9), KEY)) == 72


def test_impossible_probes():
    with pytest.raises(ValueError, match="sequence"):
        Probe(ASSOCIATION, 2**64, 0)
    with pytest.raises(ValueError, match="time"):
        Probe(ASSOCIATION, 0, -1)
    with pytest.raises(ValueError, match="is a name"):
        ProbeAnswer(ASSOCIATION, 0, 0, Endpoint("a.example", 1))
    with pytest.raises(ValueError, match="received"):
        Position(ASSOCIATION, 0, SessionId(b"s" * 16), 2**63)


def test_vectors(vectors):
    content = vectors("probe.json")
    up, down = (bytes.fromhex(content[name]) for name in ("probe_key_up", "probe_key_down"))
    assert probe_key(bytes.fromhex(content["key_up"])) == up
    assert probe_key(bytes.fromhex(content["key_down"])) == down
    for case in content["valid"]:
        fields = case["fields"]
        common = AssociationId.from_hex(fields["association"]), fields["sequence"], fields["time"]
        expected: ProbeMessage = Probe(*common)
        if "observed" in fields:
            expected = ProbeAnswer(*common, Endpoint.parse(fields["observed"]))
        key = down if isinstance(expected, ProbeAnswer) else up
        datagram = bytes.fromhex(case["bytes"])
        assert encode_probe(expected, key) == datagram, case["name"]
        assert decode_probe(datagram).message == expected, case["name"]
        assert decode_probe(datagram).verify(key), case["name"]
    for case in content["positions"]:
        fields = case["fields"]
        ids = AssociationId.from_hex(fields["association"]), fields["sequence"], SessionId.from_hex(fields["session"])
        position: ProbeMessage = Position(*ids, fields["received"]) if "received" in fields else PositionQuery(*ids)
        key = down if isinstance(position, Position) else up
        datagram = bytes.fromhex(case["bytes"])
        assert encode_probe(position, key) == datagram, case["name"]
        assert decode_probe(datagram).message == position, case["name"]
        assert decode_probe(datagram).verify(key), case["name"]
    for case in content["forged"]:
        assert not decode_probe(bytes.fromhex(case["bytes"])).verify(up), case["name"]
    for case in content["invalid"]:
        with pytest.raises(ProtocolError) as caught:
            decode_probe(bytes.fromhex(case["bytes"]))
        assert caught.value.reason == case["error"], case["name"]
