"""What follows from interfaces, addresses and routes; the facts are those that `RouteSocket` gives."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from msocks.link_monitor.route_socket import (
    AddressGone,
    Interface,
    InterfaceAddress,
    InterfaceGone,
    Route,
    RoutesChanged,
)
from msocks.link_monitor.table import LinkChange, LinkTable, changes
from msocks.values.link import Family, LinkState

LO = Interface(1, "lo", is_up=True, is_running=True, is_loopback=True, mtu=65536)


def interface(index: int, name: str, *, up: bool = True, running: bool = True, mtu: int | None = 1500) -> Interface:
    return Interface(index, name, is_up=up, is_running=running, is_loopback=False, mtu=mtu)


def address(
    index: int, text: str, *, usable: bool = True, deprecated: bool = False, temporary: bool = False
) -> InterfaceAddress:
    return InterfaceAddress(index, ip_address(text), usable, deprecated, temporary)


def route(index: int, text: str = "0.0.0.0/0", metric: int = 0) -> Route:
    return Route(index, ip_network(text), metric)


def table(names: list[str] | None = None, **metered: bool) -> LinkTable:
    return LinkTable(names, metered)


def wifi_and_lte(names: list[str] | None = None, **metered: bool) -> LinkTable:
    made = table(names, **metered)
    made.replace(
        [LO, interface(2, "lte", mtu=1400), interface(3, "wifi")],
        [address(2, "100.64.1.5"), address(3, "192.168.1.7")],
        [route(2, metric=700), route(3, metric=600), route(3, "192.168.1.0/24")],
    )
    return made


def test_without_names_each_interface_with_a_default_route_is_a_link_in_the_order_of_the_metrics():
    links = wifi_and_lte(lte=True).links()
    assert list(links) == ["wifi", "lte"]
    assert {link.state for link in links.values()} == {LinkState.UP}
    assert links["lte"].addresses == (ip_address("100.64.1.5"),)
    assert (links["lte"].mtu, links["wifi"].mtu) == (1400, 1500)
    assert (links["lte"].metered, links["wifi"].metered) == (True, None)


def test_with_names_the_order_is_theirs_and_others_are_no_links():
    made = wifi_and_lte(["dock", "lte", "wifi"])
    made.apply(interface(9, "eth7"))
    assert list(made.links()) == ["lte", "wifi"]
    made.apply(interface(10, "dock", running=False))
    assert list(made.links()) == ["dock", "lte", "wifi"]
    assert made.links()["dock"].state is LinkState.DOWN


def test_an_interface_without_a_way_out_is_no_link_unless_its_network_holds_the_proxy():
    made = table()
    made.replace([interface(2, "lab")], [address(2, "10.0.0.2")], [route(2, "10.0.0.0/8")])
    assert made.links() == {}
    made.set_targets([ip_address("2001:db8::1"), ip_address("10.9.9.9")])
    assert made.links()["lab"].routes == {Family.V4}
    assert made.links()["lab"].state is LinkState.UP


def test_a_link_stays_one_while_it_is_down_and_has_lost_its_routes():
    made = wifi_and_lte()
    made.apply(interface(3, "wifi", up=False, running=False))
    made.replace_routes([route(2)])
    links = made.links()
    assert links["wifi"].state is LinkState.DOWN
    assert links["wifi"].routes == frozenset()
    made.apply(InterfaceGone(3))
    assert list(made.links()) == ["lte"]


def test_loopback_is_a_link_only_by_name():
    for names, expected in ((None, []), (["lo"], ["lo"])):
        made = table(names)
        made.replace([LO], [], [route(1)])
        assert list(made.links()) == expected


def test_carrier_address_and_route_are_each_needed():
    made = wifi_and_lte()
    made.apply(interface(3, "wifi", running=False))
    assert made.links()["wifi"].state is LinkState.DOWN
    made.apply(interface(3, "wifi"))
    assert made.links()["wifi"].state is LinkState.UP
    made.apply(AddressGone(3, ip_address("192.168.1.7")))
    assert made.links()["wifi"].state is LinkState.DOWN
    made.apply(address(3, "192.168.1.8"))
    assert made.links()["wifi"].state is LinkState.UP
    made.replace_routes([route(2)])
    assert made.links()["wifi"].state is LinkState.DOWN


def test_an_address_needs_a_route_of_its_own_family():
    made = table()
    made.replace([interface(2, "wifi")], [address(2, "192.168.1.7")], [route(2, "::/0")])
    link = made.links()["wifi"]
    assert link.state is LinkState.DOWN
    assert link.families == ()
    made.apply(address(2, "2001:db8::7"))
    assert made.links()["wifi"].families == (Family.V6,)


def test_source_addresses_are_in_the_order_of_preference():
    made = table()
    made.replace(
        [interface(2, "wifi")],
        [
            address(2, "fd00::7"),
            address(2, "2001:db8::1", deprecated=True),
            address(2, "2001:db8::2"),
            address(2, "2001:db8::3", temporary=True),
            address(2, "2001:db8::4", usable=False),
            address(2, "192.168.1.7", deprecated=True),
        ],
        [route(2), route(2, "::/0")],
    )
    texts = [str(each) for each in made.links()["wifi"].addresses]
    assert texts == ["192.168.1.7", "2001:db8::3", "2001:db8::2", "fd00::7"]


def test_an_address_becomes_usable_when_duplicate_detection_is_done():
    made = table()
    made.replace([interface(2, "wifi")], [address(2, "2001:db8::1", usable=False)], [route(2, "::/0")])
    assert made.links()["wifi"].state is LinkState.DOWN
    made.apply(address(2, "2001:db8::1"))
    assert made.links()["wifi"].state is LinkState.UP


def test_routes_are_asked_for_where_the_kernel_changes_them_without_a_word():
    made = wifi_and_lte()
    assert made.apply(RoutesChanged())
    assert made.apply(interface(3, "wifi", up=False, running=False)), "set down: its routes are gone"
    assert not made.apply(interface(3, "wifi", up=False, running=False))
    assert made.apply(AddressGone(2, ip_address("100.64.1.5"))), "the last address took the routes with it"
    assert not made.apply(AddressGone(2, ip_address("100.64.1.5")))
    assert not made.apply(address(2, "100.64.1.6"))


def test_an_event_without_mtu_keeps_the_known_one_and_a_strange_one_is_brought_into_range():
    made = table(["a", "b"])
    made.replace([interface(2, "a", mtu=1280), interface(3, "b", mtu=16)], [], [])
    made.apply(interface(2, "a", mtu=None))
    assert {link.mtu for link in made.links().values()} == {1280, 68}


def test_a_renamed_interface_is_another_link():
    made = wifi_and_lte(["wifi", "dock"])
    before = made.links()
    made.apply(interface(3, "dock"))
    assert [(each.name, each.before is None, each.after is None) for each in changes(before, made.links())] == [
        ("wifi", False, True),
        ("dock", True, False),
    ]


def test_changes_between_two_pictures():
    made = wifi_and_lte()
    before = made.links()
    assert changes(before, made.links()) == []
    made.apply(address(2, "100.64.9.9"))
    assert changes(before, made.links()) == [LinkChange("lte", before["lte"], made.links()["lte"])]
    assert changes({}, before) == [LinkChange("wifi", None, before["wifi"]), LinkChange("lte", None, before["lte"])]


def test_what_was_lost_is_gone_after_everything_was_read_anew_but_a_link_stays_one():
    made = wifi_and_lte()
    made.replace([LO, interface(3, "wifi", running=False)], [], [])
    assert list(made.links()) == ["wifi"]
    assert made.links()["wifi"].addresses == ()
