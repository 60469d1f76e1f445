"""The network of a lab: hosts, interfaces, addresses and routes, made with netlink.

    mobile --veth-- radio-LINK --TUN=emulator=TUN-- core --veth-- proxy
                                                     `----veth-- server

A fat link has a plain veth in place of the emulator.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from msocks_lab import firewall
from msocks_lab.addressing import CORE_IPV4, CORE_IPV6, WIRED_HOSTS, AccessPlan
from msocks_lab.node import Node
from msocks_lab.wire import scratch_directory

_EVERYWHERE = {
    "ipv4/tcp_congestion_control": "cubic",
    "ipv4/tcp_no_metrics_save": "1",  # a run must not learn from the one before
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv6/conf/all/accept_dad": "0",
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/all/accept_ra": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/all/keep_addr_on_down": "1",
    "ipv6/conf/default/keep_addr_on_down": "1",
}
_ROUTER = {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"}
_MOBILE = {
    # Without carrier a laptop's network manager takes the routes away; so does a cut, and before it this has the same
    # effect on routes that are looked up.
    "ipv4/conf/all/ignore_routes_with_linkdown": "1",
    "ipv4/conf/default/ignore_routes_with_linkdown": "1",
    "ipv6/conf/all/ignore_routes_with_linkdown": "1",
    "ipv6/conf/default/ignore_routes_with_linkdown": "1",
    # An interface answers for its own addresses alone, as it would on networks that are really apart.
    "ipv4/conf/all/arp_ignore": "1",
    "ipv4/conf/all/arp_announce": "2",
    "ipv6/conf/all/keep_addr_on_down": "0",
    "ipv6/conf/default/keep_addr_on_down": "0",
    "ipv4/ping_group_range": "0 2147483647",
}


@contextlib.contextmanager
def choosable(congestion_control: str) -> Iterator[None]:
    """Let other network namespaces than the first choose an algorithm that the machine keeps to itself.

    Those that have chosen keep it, so the machine's own setting is put back at the end.
    """
    setting = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
    with (scratch_directory() / "msocks-lab-congestion-control").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        allowed = setting.read_text()
        if congestion_control in allowed.split():
            yield
            return
        setting.write_text(f"{allowed.strip()} {congestion_control}")
        try:
            yield
        finally:
            setting.write_text(allowed)


class Network:
    """All hosts of a lab. `tuns` holds, per emulated link, the descriptors (toward the mobile, toward the core)."""

    def __init__(self, plans: list[AccessPlan], overlays: dict[Path, Path]) -> None:
        self.nodes: dict[str, Node] = {}
        self.tuns: dict[str, tuple[int, int]] = {}
        special = {"mobile": _MOBILE, **dict.fromkeys(("core", *(plan.radio for plan in plans)), _ROUTER)}
        with choosable(_EVERYWHERE["ipv4/tcp_congestion_control"]):
            for name in ("mobile", "core", *(host.name for host in WIRED_HOSTS), *(plan.radio for plan in plans)):
                self.nodes[name] = Node(name, overlays, {**_EVERYWHERE, **special.get(name, {})})
        self._build_core()
        for plan in plans:
            self._build_access(plan)

    def _build_core(self) -> None:
        core = self.nodes["core"]
        for host in WIRED_HOSTS:
            node = self.nodes[host.name]
            node.veth("eth0", core, host.name, mtu=1500)
            node.address("eth0", host.ipv4, 24)
            node.address("eth0", host.ipv6, 64)
            core.address(host.name, host.ipv4_gateway, 24)
            core.address(host.name, host.ipv6_gateway, 64)
            node.route("default", "eth0", host.ipv4_gateway)
            node.route("default", "eth0", host.ipv6_gateway)

    def _build_access(self, plan: AccessPlan) -> None:
        link, radio, core, mobile = plan.link, self.nodes[plan.radio], self.nodes["core"], self.nodes["mobile"]
        if link.fat:
            radio.veth("air", core, link.name, mtu=link.mtu)
        else:
            self.tuns[link.name] = (radio.tun("air", link.mtu), core.tun(link.name, link.mtu))
        believed = link.interface_mtu or link.mtu
        radio.veth("mobile", mobile, link.name, mtu=max(believed, link.mtu), peer_mtu=believed)
        if not link.ipv6:
            mobile.sysctl({f"ipv6/conf/{link.name}/disable_ipv6": "1"})
        if link.ipv4:
            core.address(link.name, CORE_IPV4, 32)
            core.route(f"{plan.public_ipv4}/32", link.name)
            radio.address("air", plan.public_ipv4, 32)
            radio.route(f"{CORE_IPV4}/32", "air")
            radio.route("default", "air", CORE_IPV4)
            radio.blackhole(plan.ipv4_subnet)
            if link.nat:
                firewall.install_nat(radio, link)
            else:
                core.route(plan.ipv4_subnet, link.name, plan.public_ipv4)
        if link.ipv6:
            core.address(link.name, CORE_IPV6, 128)
            core.route(f"{plan.public_ipv6}/128", link.name)
            radio.address("air", plan.public_ipv6, 128)
            radio.route(f"{CORE_IPV6}/128", "air")
            radio.route("default", "air", CORE_IPV6)
            radio.blackhole(plan.ipv6_subnet)
            core.route(plan.ipv6_subnet, link.name, plan.public_ipv6)
        self.connect_radio(plan)
        if link.attached:
            self.configure_mobile(plan)

    def connect_radio(self, plan: AccessPlan) -> None:
        """Set the access router's interface toward the mobile up, with its addresses."""
        radio = self.nodes[plan.radio]
        radio.up("mobile")
        if plan.link.ipv4:
            radio.address("mobile", plan.ipv4_gateway, 24)
        if plan.link.ipv6:
            radio.address("mobile", plan.ipv6_gateway, 64)

    def configure_mobile(self, plan: AccessPlan) -> None:
        """Give the mobile addresses and default routes on a link, as DHCP and router advertisements would."""
        mobile, name = self.nodes["mobile"], plan.link.name
        mobile.up(name)
        mobile.wait_for_carrier(name)
        if plan.ipv4 is not None:
            mobile.address(name, plan.ipv4, 24)
            mobile.route("default", name, plan.ipv4_gateway, plan.metric)
        if plan.ipv6 is not None:
            mobile.address(name, plan.ipv6, 64)
            mobile.route("default", name, plan.ipv6_gateway, plan.metric)

    def withdraw_routes(self, plan: AccessPlan) -> None:
        """Take away the default routes of `configure_mobile`."""
        for gateway in (plan.ipv4_gateway if plan.ipv4 else None, plan.ipv6_gateway if plan.ipv6 else None):
            if gateway is not None:
                self.nodes["mobile"].unroute("default", plan.link.name, gateway, plan.metric)

    def has_lease(self, plan: AccessPlan) -> bool:
        """Whether the mobile has any address on a link, the IPv6 link-local one aside."""
        mobile = self.nodes["mobile"]
        found = mobile.netlink.get_addr(index=mobile.index(plan.link.name))
        return any(not item.get_attr("IFA_ADDRESS").startswith("fe80:") for item in found)
