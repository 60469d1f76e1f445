from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from msocks.proxy.destination_rules import DENIED_BY_DEFAULT, DestinationRules, Verdict, embedded_ipv4


def rules(allow: str = "", deny: str = "") -> DestinationRules:
    return DestinationRules([ip_network(each) for each in allow.split()], [ip_network(each) for each in deny.split()])


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "10.0.0.0", "10.255.255.255", "100.64.0.1", "100.127.255.255", "127.0.0.1"),
        *("127.255.255.255", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1"),
        *("192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9"),
        *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "64:ff9b:1::1", "100::1", "2001:db8::1", "3fff::1", "5f00::1", "fc00::1", "fd12::1"),
        *("fe80::1", "febf::1", "fec0::1", "ff02::1", "ff0e::1"),
        # What stands for a denied IPv4 address.
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::10.0.0.1", "2002:7f00:1::1"),
        *("2002:c0a8:101::1", "2001:0:c000:201::1"),
    ],
)
def test_denied_by_default(address: str):
    assert rules().judge(ip_address(address)) is Verdict.DENIED_BY_DEFAULT


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.0.0.1", "128.0.0.1"),
        *("169.253.0.1", "172.15.0.1", "172.32.0.1", "192.0.1.1", "192.167.1.1", "223.255.255.255"),
        *("2606:4700::1111", "64:ff9b::1.1.1.1", "::ffff:1.1.1.1", "2002:101:101::1", "2a00::1"),
    ],
)
def test_allowed_by_default(address: str):
    assert rules().judge(ip_address(address)) is Verdict.ALLOWED


@pytest.mark.parametrize(
    ("allow", "deny", "address", "verdict"),
    [
        ("10.1.0.0/16", "", "10.1.2.3", Verdict.ALLOWED),
        ("10.1.0.0/16", "", "10.2.0.1", Verdict.DENIED_BY_DEFAULT),
        ("", "1.1.1.0/24", "1.1.1.1", Verdict.DENIED_BY_RULE),
        # Deny beats allow, whichever prefix is longer.
        ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", Verdict.DENIED_BY_RULE),
        ("10.1.2.3/32", "10.0.0.0/8", "10.1.2.3", Verdict.DENIED_BY_RULE),
        ("0.0.0.0/0", "", "127.0.0.1", Verdict.ALLOWED),
        ("0.0.0.0/0", "", "::1", Verdict.DENIED_BY_DEFAULT),
        ("::/0", "", "fd00::1", Verdict.ALLOWED),
        ("::/0", "", "10.0.0.1", Verdict.DENIED_BY_DEFAULT),
        # An embedded address is judged as itself as well.
        ("127.0.0.0/8", "", "::ffff:127.0.0.1", Verdict.ALLOWED),
        ("10.0.0.0/8", "", "64:ff9b::10.0.0.1", Verdict.ALLOWED),
        ("64:ff9b::/96", "", "64:ff9b::10.0.0.1", Verdict.ALLOWED),
        ("", "1.1.1.1/32", "64:ff9b::1.1.1.1", Verdict.DENIED_BY_RULE),
        ("64:ff9b::/96", "1.1.1.1/32", "64:ff9b::1.1.1.1", Verdict.DENIED_BY_RULE),
        ("", "8.8.8.8/32", "::ffff:8.8.8.8", Verdict.DENIED_BY_RULE),
        ("", "2002::/16", "2002:101:101::1", Verdict.DENIED_BY_RULE),
    ],
)
def test_explicit_rules(allow: str, deny: str, address: str, verdict: Verdict):
    judge = rules(allow, deny).judge
    assert judge(ip_address(address)) is verdict
    assert judge(ip_address(address)) is verdict  # the second answer comes from memory


@pytest.mark.parametrize(
    ("address", "embedded"),
    [
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("::1.2.3.4", "1.2.3.4"),
        ("64:ff9b::1.2.3.4", "1.2.3.4"),
        ("2002:102:304::9", "1.2.3.4"),
        # RFC 4380 section 4: the client's address is inverted.
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "192.0.2.45"),
        ("::", None),
        ("::1", None),
        ("2606:4700::1", None),
    ],
)
def test_embedded_addresses(address: str, embedded: str | None):
    assert embedded_ipv4(IPv6Address(address)) == (IPv4Address(embedded) if embedded else None)


def test_every_default_range_is_denied_from_its_first_to_its_last_address():
    for network in DENIED_BY_DEFAULT:
        for address in (network[0], network[-1]):
            assert rules().judge(address) is Verdict.DENIED_BY_DEFAULT, address


def test_the_memory_of_verdicts_is_bounded():
    judged = rules()
    for number in range(10_000):
        judged.judge(IPv4Address(0x01000000 + number))
    assert len(judged._remembered) <= 4096
