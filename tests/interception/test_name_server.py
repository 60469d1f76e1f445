"""Names get addresses that lead back to them, and no question is answered with what nobody knows."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msocks.interception.name_pool import NamePool
from msocks.interception.name_server import MAX_BYTES, answer

A, PTR, MX, AAAA, HTTPS = 1, 12, 15, 28, 65
NO_ERROR, FORMAT_ERROR, NO_SUCH_NAME, NOT_IMPLEMENTED = 0, 1, 3, 4


def question(name: str, kind: int, *, flags: int = 0x0100, domain: int = 1) -> bytes:
    wire = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    return struct.pack("!HHHHHH", 0x1234, flags, 1, 0, 0, 0) + wire + struct.pack("!HH", kind, domain)


def ask(pool: NamePool, name: str, kind: int, **options: int) -> tuple[int, bytes]:
    """The code of the answer, and the data of its record."""
    query = question(name, kind, **options)
    reply = answer(query, pool)
    assert reply is not None
    assert len(reply) <= MAX_BYTES
    identity, flags, questions, answers, authority, more = struct.unpack_from("!HHHHHH", reply)
    assert (identity, flags & 0x8080, questions, authority, more) == (0x1234, 0x8080, 1, 0, 0)
    assert reply[12:].startswith(query[12:])
    record = reply[len(query) :]
    if not answers:
        assert record == b""
        return flags & 0xF, b""
    pointer, is_kind, domain, _ttl, length = struct.unpack_from("!HHHIH", record)
    assert (pointer, is_kind, domain, length) == (0xC00C, kind, 1, len(record) - 12)
    return flags & 0xF, record[12:]


def test_a_name_has_an_address_of_each_kind_that_leads_back_to_it():
    pool = NamePool()
    for name in ("server.example", "other.example", "Server.EXAMPLE"):
        ipv4, ipv6 = IPv4Address(ask(pool, name, A)[1]), IPv6Address(ask(pool, name, AAAA)[1])
        assert ipv4 in IPv4Network("198.18.0.0/15")
        assert ipv6 in IPv6Network("100::/64")
        assert pool.name(ipv4) == pool.name(ipv6) == name.lower()
        wire = b"".join(bytes([len(label)]) + label.encode() for label in name.lower().split(".")) + b"\0"
        assert ask(pool, ipv4.reverse_pointer, PTR) == (NO_ERROR, wire)
        assert ask(pool, ipv6.reverse_pointer, PTR) == (NO_ERROR, wire)
    assert ask(pool, "server.example", A)[1] != ask(pool, "other.example", A)[1]


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("server.example", HTTPS, NO_ERROR),
        ("server.example", MX, NOT_IMPLEMENTED),
        ("not a name", A, NO_SUCH_NAME),
        ("1.2.3.4", A, NO_SUCH_NAME),
        ("9.9.9.9.in-addr.arpa", PTR, NO_SUCH_NAME),
        ("1.0.18.198.in-addr.arpa", PTR, NO_SUCH_NAME),
        ("x.in-addr.arpa", PTR, NO_SUCH_NAME),
        ("x.ip6.arpa", PTR, NO_SUCH_NAME),
    ],
)
def test_what_is_not_known_has_no_data(name: str, kind: int, code: int):
    assert ask(NamePool(), name, kind) == (code, b"")


def test_localhost_is_this_host():
    assert ask(NamePool(), "localhost", A) == (NO_ERROR, bytes([127, 0, 0, 1]))
    assert ask(NamePool(), "x.localhost", AAAA) == (NO_ERROR, IPv6Address("::1").packed)


def test_the_pool_gives_what_was_asked_for_least_recently_to_another_name():
    pool = NamePool()
    first, _ = pool.addresses("first.example")
    second, _ = pool.addresses("second.example")
    for number in range(65533):
        pool.addresses(f"n{number}.example")
    pool.addresses("first.example")
    assert pool.addresses("one-more.example")[0] == second
    assert pool.name(first) == "first.example"
    assert pool.name(second) == "one-more.example"
    assert pool.name(IPv4Address("192.0.2.1")) is None
    with pytest.raises(LookupError):
        pool.name(IPv4Address("198.19.255.255"))


@given(st.binary(max_size=64) | st.binary(max_size=40).map(lambda tail: question("a.b", A)[:12] + tail))
def test_no_packet_is_too_much_for_it(packet: bytes):
    reply = answer(packet, NamePool())
    assert reply is None or (reply[:2] == packet[:2] and reply[2] & 0x80)


@pytest.mark.parametrize("cut", range(1, 6))
def test_a_question_that_ends_early_is_malformed(cut: int):
    reply = answer(question("server.example", A)[:-cut], NamePool())
    assert reply is not None
    assert reply[3] & 0xF == FORMAT_ERROR
