"""wireguard-go as a contender: a tunnel from the mobile host to the proxy's, whose endpoint roams."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks import world
from benchmarks.contenders import Contender
from msocks_lab import Host, LabProcess
from msocks_lab.process import python_argv

_PORT = 51820
_MOBILE, _GATEWAY = "10.77.0.1", "10.77.0.2"
_INTERFACE = "wg0"
_KEEPALIVE_S = "1"  # the least there is: after so long the other end knows the new address at the latest
_NAT = f"""\
table ip wireguard {{
    chain postrouting {{
        type nat hook postrouting priority srcnat
        ip saddr {_MOBILE} masquerade
    }}
}}
"""
# The daemon's control socket has a fixed place, which hosts of all labs would share.
_PLACE = Path("/run/wireguard")
_OWN_PLACE = f"mkdir -p {_PLACE} && mount -t tmpfs none {_PLACE}"


def tidy() -> None:
    """When all labs have gone: take away the directory that was made for their mounts, if nobody else uses it."""
    with contextlib.suppress(OSError):
        _PLACE.rmdir()


class WireGuard(Contender):
    """The mobile host's TCP goes through the tunnel; the proxy's host translates it to an address of its own."""

    name = "wireguard-go"
    title = "wireguard-go"
    start_s = 1.5

    def start(self, links: Sequence[str]) -> None:
        world.start_pattern_server(self.lab)
        mobile, gateway = self.lab.mobile, self.lab.proxy
        keys = {host.name: mobile.run(["wg", "genkey"]).stdout.strip() for host in (mobile, gateway)}
        public = {name: mobile.run(["wg", "pubkey"], input=key).stdout.strip() for name, key in keys.items()}
        for host in (mobile, gateway):
            self._tunnel(host, keys[host.name])
        self._set(gateway, "listen-port", str(_PORT), "peer", public["mobile"], "allowed-ips", f"{_MOBILE}/32")
        endpoint = f"{gateway.ipv4}:{_PORT}"
        peer = ["peer", public["proxy"], "endpoint", endpoint]
        allowed = f"{_GATEWAY}/32,{self.target}/32"
        self._set(mobile, *peer, "allowed-ips", allowed, "persistent-keepalive", _KEEPALIVE_S)
        self._address(mobile, _MOBILE, _GATEWAY)
        self._address(gateway, _GATEWAY, _MOBILE)
        mobile.run(["ip", "route", "add", self.target, "dev", _INTERFACE])
        gateway.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
        gateway.run(["nft", "-f", "-"], input=_NAT)
        hook = python_argv("benchmarks.wireguard_manager", _INTERFACE, public["proxy"], endpoint, _KEEPALIVE_S)
        world.start_ready(mobile.popen(hook, stdout=subprocess.PIPE))
        world.wait_for(self._has_shaken_hands, "the tunnel's first handshake")

    def _has_shaken_hands(self) -> bool:
        return self.lab.mobile.run(["wg", "show", _INTERFACE, "latest-handshakes"]).stdout.split()[1] != "0"

    def _tunnel(self, host: Host, key: str) -> None:
        host.run(["sh", "-c", _OWN_PLACE])
        host.popen(["wireguard-go", "-f", _INTERFACE])
        world.wait_for(
            lambda: host.run(["wg", "show", _INTERFACE], check=False).returncode == 0, f"wireguard-go on {host.name}"
        )
        file = self.lab.directory / f"wireguard-{host.name}.key"
        file.touch(0o600)
        file.write_text(key)
        self._set(host, "private-key", str(file))

    def _set(self, host: Host, *arguments: str) -> None:
        host.run(["wg", "set", _INTERFACE, *arguments])

    def _address(self, host: Host, own: str, peer: str) -> None:
        host.run(["ip", "address", "add", own, "peer", peer, "dev", _INTERFACE])
        host.run(["ip", "link", "set", _INTERFACE, "up"])

    def transfer(self, *arguments: str) -> LabProcess:
        return world.bulk_client(self.lab, *arguments, target=self.target)

    def check(self) -> str:
        received, sent = self.lab.proxy.run(["wg", "show", _INTERFACE, "transfer"]).stdout.split()[1:3]
        return "" if int(received) + int(sent) > 1_000_000 else "the transfer did not go through the tunnel"
