from __future__ import annotations

import socket
import struct
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.datapath.splice.two_hosts import packed

from msocks.datapath.splice.segments import ACK, PSH, SYN, sack_blocks, segment, timestamps

PORT = st.integers(0, 0xFFFF)
NUMBER = st.integers(0, 0xFFFFFFFF)
IPV4 = st.ip_addresses(v=4).map(lambda address: packed(str(address)))
IPV6 = st.ip_addresses(v=6).map(lambda address: packed(str(address)))
OPTIONS = st.integers(0, 10).flatmap(lambda words: st.binary(min_size=4 * words, max_size=4 * words))


def ones_complement_sum(data: bytes) -> int:
    """RFC 1071 word by word: 0xffff where a checksum within is right."""
    total = 0
    for (word,) in struct.iter_unpack("!H", data + bytes(len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checked(packet: bytes) -> tuple[bytes, bytes, bytes]:
    """Source, destination and TCP part of a packet whose lengths and checksums are right."""
    if packet[0] == 0x45:
        header, source, destination = packet[:20], packet[12:16], packet[16:20]
        assert ones_complement_sum(header) == 0xFFFF
        assert int.from_bytes(packet[2:4], "big") == len(packet)
    else:
        assert packet[0] == 0x60
        header, source, destination = packet[:40], packet[8:24], packet[24:40]
        assert int.from_bytes(packet[4:6], "big") == len(packet) - 40
    tcp = packet[len(header) :]
    pseudo = source + destination + struct.pack("!II", len(tcp), socket.IPPROTO_TCP)
    assert ones_complement_sum(pseudo + tcp) == 0xFFFF
    return source, destination, tcp


@pytest.mark.parametrize("address", [IPV4, IPV6], ids=["IPv4", "IPv6"])
def test_every_number_stands_in_its_field_and_the_checksums_are_right(address: st.SearchStrategy[bytes]):
    @given(address, PORT, address, PORT, NUMBER, NUMBER, st.integers(0, 255), PORT, OPTIONS, st.binary(max_size=99))
    def check(source, source_port, destination, destination_port, seq, ack, flags, window, options, payload):
        packet = segment(
            source=(source, source_port),
            destination=(destination, destination_port),
            sequence=seq,
            acknowledgment=ack,
            flags=flags,
            window=window,
            options=options,
            payload=payload,
        )
        seen_source, seen_destination, tcp = checked(packet)
        assert source.endswith(seen_source)
        assert destination.endswith(seen_destination)
        fields = struct.unpack_from("!HHIIBBHHH", tcp)
        assert fields[:4] == (source_port, destination_port, seq, ack)
        assert fields[4:7] == (5 + len(options) // 4 << 4, flags, window)
        assert fields[8] == 0
        assert tcp[20:] == options + payload

    check()


def plain(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "source": (packed("192.0.2.1"), 16384),
        "destination": (packed("192.0.2.2"), 443),
        "sequence": 1,
        "acknowledgment": 2,
        "flags": ACK,
        "window": 3,
    }
    return segment(**(fields | changes))


def test_the_family_is_ipv4_only_where_both_ends_are():
    assert len(plain()) == 40
    assert len(plain(destination=(ip_address("2001:db8::2").packed, 443))) == 60


def test_an_ipv4_packet_may_not_be_fragmented_and_has_its_hop_limit():
    packet = plain(hop_limit=7)
    assert packet[6:8] == b"\x40\0"
    assert packet[8] == 7
    assert plain(destination=(ip_address("2001:db8::2").packed, 443), hop_limit=9)[7] == 9


def test_options_are_laid_out_as_the_rfcs_say():
    assert timestamps(0x01020304, 0x05060708).hex() == "0101080a0102030405060708"
    assert sack_blocks([(1, 2), (0xFFFFFFFF, 5)]).hex() == "010105120000000100000002ffffffff00000005"
    assert sack_blocks([]) == b""
    with pytest.raises(ValueError, match="5 SACK blocks"):
        sack_blocks([(1, 2)] * 5)


@pytest.mark.parametrize("length", [1, 3, 44])
def test_options_that_no_header_can_state_are_refused(length: int):
    with pytest.raises(ValueError, match="TCP options"):
        plain(options=bytes(length))


def test_what_is_longer_than_ip_allows_is_refused():
    plain(payload=bytes(0xFFFF - 40), flags=ACK | PSH)
    with pytest.raises(ValueError, match="IPv4"):
        plain(payload=bytes(0xFFFF - 39))
    with pytest.raises(ValueError, match="IPv6"):
        plain(source=(bytes(16), 1), payload=bytes(0xFFFF - 19), flags=SYN)
