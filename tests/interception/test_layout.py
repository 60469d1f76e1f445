"""The structures that `layout.py` reads and writes are those of the compiled object."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from msocks.datapath.splice.libbpf import structure
from msocks.interception import layout
from msocks.interception.hooks import OBJECT
from msocks.values.endpoint import Endpoint


def test_sizes_and_places_are_the_compilers():
    size, places = structure(OBJECT, "attempt")
    assert size == layout.ATTEMPT.size
    assert list(places.items()) == [
        ("cookie", 0), ("local", 8), ("destination", 24), ("local_port", 40), ("destination_port", 42),
        ("sequence", 44), ("pid", 48), ("uid", 52), ("is_ipv6", 56), ("pad", 57), ("comm", 64),
    ]  # fmt: skip
    size, places = structure(OBJECT, "settings")
    assert size == layout.SETTINGS.size
    assert list(places.items()) == [
        ("netns_cookie", 0), ("port4", 8), ("port6", 10), ("dns4", 12), ("dns6", 14), ("enabled", 16), ("no_udp", 17),
        ("pad", 18),
    ]  # fmt: skip
    size, places = structure(OBJECT, "excluded")
    assert (size, places) == (layout.EXCLUDED.size, {"prefix_bits": 0, "address": 4})


def test_an_attempt_is_read():
    record = layout.ATTEMPT.pack(
        7,
        bytes(10) + b"\xff\xff" + bytes([127, 0, 0, 1]),
        IPv6Address("2001:db8::1").packed,
        (4711).to_bytes(2, "big"),
        (443).to_bytes(2, "big"),
        (0x01020304).to_bytes(4, "big"),
        99,
        1000,
        0,
        b"curl\0rest of it",
    )
    attempt = layout.read_attempt(record)
    assert attempt == layout.Attempt(
        7,
        Endpoint(IPv4Address("127.0.0.1"), 4711),
        Endpoint(IPv6Address("2001:db8::1"), 443),
        0x01020304,
        99,
        1000,
        "curl",
    )


@pytest.mark.parametrize(
    ("network", "bits", "words"),
    [
        (IPv4Network("10.0.0.0/8"), 104, bytes(10) + b"\xff\xff\x0a\0\0\0"),
        (IPv6Network("2001:db8::/32"), 32, bytes.fromhex("20010db8") + bytes(12)),
    ],
)
def test_a_network_is_a_key_of_the_longest_prefix_table(network: IPv4Network | IPv6Network, bits: int, words: bytes):
    assert layout.EXCLUDED.unpack(layout.excluded(network)) == (bits, words)
