from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from msocks.values.link import Family, Link, LinkState

V4 = IPv4Address("192.0.2.1")
V6 = IPv6Address("2001:db8::1")
WIFI = Link("wlan0", 3, LinkState.UP, (V6, V4), frozenset({Family.V4, Family.V6}))


def test_sources_and_families_follow_the_order_of_the_addresses():
    assert WIFI.source(Family.V4) == V4
    assert WIFI.source(Family.V6) == V6
    assert WIFI.families == (Family.V6, Family.V4)


@pytest.mark.parametrize(
    ("state", "addresses", "routes", "families"),
    [
        (LinkState.UP, (V4, V6), {Family.V4}, (Family.V4,)),
        (LinkState.UP, (V4,), {Family.V4, Family.V6}, (Family.V4,)),
        (LinkState.UP, (), {Family.V4}, ()),
        (LinkState.DOWN, (V4,), {Family.V4}, ()),
        (LinkState.SILENT, (V4,), {Family.V4}, (Family.V4,)),
        (LinkState.CAPTIVE, (V4,), {Family.V4}, (Family.V4,)),
    ],
)
def test_a_family_needs_address_and_route_on_a_link_that_is_not_down(state, addresses, routes, families):
    link = Link("lte0", 4, state, addresses, frozenset(routes))
    assert link.families == families
    for family in Family:
        assert link.reaches(family) is (family in families)


@pytest.mark.parametrize(
    ("name", "index", "mtu", "complaint"),
    [
        ("", 1, 1500, "1 to 15 bytes"),
        ("x" * 16, 1, 1500, "1 to 15 bytes"),
        ("eth0", 0, 1500, "index"),
        ("eth0", 1, 67, "MTU"),
        ("eth0", 1, 65537, "MTU"),
    ],
)
def test_impossible_links(name, index, mtu, complaint):
    with pytest.raises(ValueError, match=complaint):
        Link(name, index, LinkState.UP, mtu=mtu)


def test_states_print_as_users_see_them():
    assert [str(state) for state in LinkState] == ["up", "down", "silent", "captive"]
