"""nftables in an access router: address translation, resets, the silent cut of a link without emulator, interception.

A NAT mapping is bound to a random port. A packet of a TCP connection without a mapping is dropped, as by a carrier's
NAT: the connection is not picked up again under a new port.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping

from msocks_lab.config import LinkConfig
from msocks_lab.errors import SetupError
from msocks_lab.node import Node

_NAT = """
table ip nat {
    chain forward {
        type filter hook forward priority filter; policy accept;
        ct state invalid drop
        iifname "air" ct state new drop
    }
    chain input {
        type filter hook input priority filter; policy accept;
        iifname "air" ct state { invalid, new } drop
    }
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "air" iifname "mobile" masquerade fully-random
    }
}
"""
_INTERFERENCE = """
table inet interference
delete table inet interference
table inet interference {{
    chain forward {{
        type filter hook forward priority raw; policy accept;
        {rules}
    }}
}}
"""
_INTERCEPTION = """
table inet interception
delete table inet interception
table inet interception {{
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        {redirections}
    }}
    chain forward {{
        type filter hook forward priority filter; policy {forwarded};
    }}
}}
"""


def _nft(router: Node, rules: str) -> None:
    if shutil.which("nft") is None:
        raise SetupError("NAT and cuts of fat links need the program `nft`", "apt-get install nftables")
    with router.namespaces.network():
        done = subprocess.run(["nft", "-f", "-"], input=rules, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SetupError(f"nft refused the rules of {router.name}: {done.stderr.strip()}")


def install_nat(router: Node, link: LinkConfig) -> None:
    """Masquerade what the mobile sends over IPv4. Raises SetupError."""
    _nft(router, _NAT)
    router.sysctl(
        {
            "netfilter/nf_conntrack_tcp_loose": "0",
            "netfilter/nf_conntrack_tcp_timeout_established": str(link.nat_tcp_idle_s),
            # Data in flight when a path fails must not shorten the mapping's life below the idle time-out.
            "netfilter/nf_conntrack_tcp_timeout_max_retrans": str(link.nat_tcp_idle_s),
            "netfilter/nf_conntrack_tcp_timeout_unacknowledged": str(link.nat_tcp_idle_s),
            "netfilter/nf_conntrack_udp_timeout": str(link.nat_udp_idle_s),
            "netfilter/nf_conntrack_udp_timeout_stream": str(link.nat_udp_idle_s),
        }
    )


def interfere(router: Node, drop: Mapping[str, bool], reset: bool) -> None:
    """Forward nothing in the directions ("up", "down") to `drop`; with `reset` answer TCP with RST."""
    inputs = {"up": "mobile", "down": "air"}
    rules = [f'iifname "{inputs[side]}" drop' for side in drop if drop[side]]
    if reset:
        rules.append("meta l4proto tcp reject with tcp reset")
    _nft(router, _INTERFERENCE.format(rules="\n".join(rules)))


def intercept(router: Node, *, tcp: int | None = None, udp: int | None = None, forward: bool = True) -> None:
    """Let connections and datagrams of the mobile end in the router, at these ports; `forward` decides on the rest."""
    ports = {"tcp": tcp, "udp": udp}
    rules = [
        f'iifname "mobile" meta l4proto {protocol} redirect to :{port}' for protocol, port in ports.items() if port
    ]
    forwarded = "accept" if forward else "drop"
    _nft(router, _INTERCEPTION.format(redirections="\n        ".join(rules), forwarded=forwarded))
