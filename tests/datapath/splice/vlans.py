"""Links of three hosts become VLANs, also where the kernel has no devices of the kind (CONFIG_VLAN_8021Q).

What such a device does is done by two programs and a veth pair on the proxy:

    server == tagged == trunk | programs: tag off, tag on | port == veth == vlan, with the addresses

As behind one of the kernel's, a frame passes the hooks of the trunk with its tag, and those of `vlan` without.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from socket import AF_INET, AF_INET6, if_nametoindex

from tests.datapath.splice.loading import compiled
from tests.datapath.three_hosts import VethHost, near_address

_PROGRAMS = """
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

static __always_inline int is_tagged(struct __sk_buff *skb)
{{
	return skb->vlan_present && (skb->vlan_tci & 0xfff) == {tag};
}}

SEC("tc/trunk_in") int trunk_in(struct __sk_buff *skb)
{{
	if (!is_tagged(skb) || bpf_skb_vlan_pop(skb) < 0)
		return TC_ACT_SHOT;
	return bpf_redirect({port}, 0);
}}

SEC("tc/port_in") int port_in(struct __sk_buff *skb)
{{
	if (bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), {tag}) < 0)
		return TC_ACT_SHOT;
	return bpf_redirect({trunk}, 0);
}}

SEC("tc/far_in") int far_in(struct __sk_buff *skb)
{{
	return is_tagged(skb) && bpf_skb_vlan_pop(skb) == 0 ? TC_ACT_OK : TC_ACT_SHOT;
}}

SEC("tc/far_out") int far_out(struct __sk_buff *skb)
{{
	return bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), {tag}) < 0 ? TC_ACT_SHOT : TC_ACT_OK;
}}

char licence_of_all[] SEC("license") = "GPL";
"""


def make_vlan(proxy: VethHost, far: VethHost, link: int, tag: int, directory: Path) -> None:
    """The frames of a link have a tag from now on, and its addresses on the proxy are those of `vlan{link}`.

    A frame without the tag is dropped at either end.
    """
    trunk, vlan, port = f"link{link}", f"vlan{link}", f"port{link}"
    with proxy.entered():
        shown = subprocess.run(["ip", "-j", "link", "show", trunk], capture_output=True, check=True, timeout=10).stdout
        hardware = json.loads(shown)[0]["address"]  # a VLAN has its trunk's
        proxy.ip(
            f"addr flush dev {trunk}\nlink add {vlan} type veth peer name {port}\n"
            f"link set {vlan} address {hardware}\nlink set {port} up\nlink set {vlan} up"
        )
        for family, size in ((AF_INET, "24"), (AF_INET6, "64 nodad")):
            proxy.ip(f"addr add {near_address(link, family)}/{size} dev {vlan}")
        source = directory / f"vlan{link}.bpf.c"
        numbers = {"trunk": if_nametoindex(trunk), "port": if_nametoindex(port)}
        source.write_text(_PROGRAMS.format(tag=tag, **numbers))
        made = compiled(source)
        _attach(made, trunk, "ingress", "tc/trunk_in")
        _attach(made, port, "ingress", "tc/port_in")
    with far.entered():
        _attach(made, trunk, "ingress", "tc/far_in")
        _attach(made, trunk, "egress", "tc/far_out")


def _attach(made: Path, interface: str, direction: str, section: str) -> None:
    subprocess.run(["tc", "qdisc", "replace", "dev", interface, "clsact"], check=True, timeout=10)
    run = ["bpf", "direct-action", "object-file", str(made), "section", section]
    subprocess.run(["tc", "filter", "add", "dev", interface, direction, *run], check=True, timeout=10)
