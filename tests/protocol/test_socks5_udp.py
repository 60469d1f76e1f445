from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msocks.errors import ProtocolError
from msocks.protocol.socks5_udp import ClientGate, UdpDatagram, decode_udp, encode_udp
from msocks.values.endpoint import Endpoint

PAYLOADS = st.binary(max_size=200)
CLIENT = ip_address("192.0.2.7")
NOTHING = Endpoint.parse("0.0.0.0:0")


@given(st.from_type(Endpoint), PAYLOADS)
def test_what_is_encoded_is_decoded(endpoint: Endpoint, payload: bytes):
    assert decode_udp(encode_udp(endpoint, payload)) == UdpDatagram(endpoint, payload)


@given(st.from_type(Endpoint), PAYLOADS, st.integers(1, 255))
def test_fragments_are_told(endpoint: Endpoint, payload: bytes, fragment: int):
    datagram = bytearray(encode_udp(endpoint, payload))
    datagram[2] = fragment
    assert decode_udp(bytes(datagram)).fragment == fragment


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda data: bytes(3) + data))
def test_any_datagram_is_read_or_a_defined_error(datagram: bytes):
    try:
        decode_udp(datagram)
    except ProtocolError:
        pass


@given(st.from_type(Endpoint), st.data())
def test_a_header_that_is_cut_short_is_refused(endpoint: Endpoint, data: st.DataObject):
    datagram = encode_udp(endpoint, b"")
    size = data.draw(st.integers(0, len(datagram) - 1))
    with pytest.raises(ProtocolError) as caught:
        decode_udp(datagram[:size])
    assert caught.value.reason == "length"


def test_vectors(vectors):
    content = vectors("socks5_udp.json")
    for case in content["valid"]:
        expected = UdpDatagram(Endpoint.parse(case["endpoint"]), bytes.fromhex(case["payload"]), case["fragment"])
        datagram = bytes.fromhex(case["bytes"])
        assert decode_udp(datagram) == expected
        if not expected.fragment:
            assert encode_udp(expected.endpoint, expected.payload) == datagram
    for case in content["invalid"]:
        with pytest.raises(ProtocolError) as caught:
            decode_udp(bytes.fromhex(case["bytes"]))
        assert caught.value.reason == case["error"], case["name"]


# -- whose datagrams are taken --------------------------------------------------------------------------------------


def source(text: str) -> Endpoint:
    return Endpoint.parse(text)


def test_another_address_is_never_the_client():
    gate = ClientGate(CLIENT, NOTHING)
    assert not gate.admits(source("192.0.2.8:4000"))
    assert not gate.admits(source("[2001:db8::7]:4000"))
    assert gate.client is None


def test_the_first_datagram_tells_the_port():
    gate = ClientGate(CLIENT, NOTHING)
    assert gate.admits(source("192.0.2.7:4000"))
    assert gate.client == source("192.0.2.7:4000")
    assert not gate.admits(source("192.0.2.7:4001"))
    assert gate.admits(source("192.0.2.7:4000"))


def test_a_port_that_was_announced_is_the_only_one():
    gate = ClientGate(CLIENT, source("192.0.2.7:5000"))
    assert gate.client == source("192.0.2.7:5000")
    assert not gate.admits(source("192.0.2.7:4000"))
    assert gate.admits(source("192.0.2.7:5000"))


@pytest.mark.parametrize("announced", ["10.0.0.2:5000", "0.0.0.0:5000", "[::]:5000", "a.example:5000", "192.0.2.7:0"])
def test_what_a_client_behind_a_nat_announces_does_not_count(announced: str):
    gate = ClientGate(CLIENT, source(announced))
    assert gate.client is None
    assert gate.admits(source("192.0.2.7:61000"))
    assert gate.client == source("192.0.2.7:61000")


def test_port_zero_is_nobody():
    gate = ClientGate(CLIENT, NOTHING)
    assert not gate.admits(source("192.0.2.7:0"))
    assert gate.client is None
