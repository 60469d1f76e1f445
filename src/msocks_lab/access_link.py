"""One uplink as the supervisor drives it: shape, cuts, addresses. Every change is timed with CLOCK_MONOTONIC."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from msocks_lab import firewall
from msocks_lab.addressing import AccessPlan
from msocks_lab.config import CutMode, Direction
from msocks_lab.errors import CommandError, SetupError
from msocks_lab.gateway import Gateway
from msocks_lab.topology import Network

_PATIENCE = 10.0
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class AccessLink:
    """See the module. Its methods raise CommandError where the link's state does not allow them."""

    def __init__(self, plan: AccessPlan, network: Network, seed: int) -> None:
        self.plan = plan
        self.name = plan.link.name
        self._network = network
        self._shapes = {side: plan.link.shape(Direction(side)) for side in ("up", "down")}
        self._mtu = plan.link.mtu
        self._attached = plan.link.attached
        self._cut_mode: CutMode | None = None
        self._cut_sides = {"up": False, "down": False}
        self._resetting = False
        self._emulator: socket.socket | None = None
        self.gateway = Gateway(plan.link, network.nodes[plan.radio])
        if plan.link.fat:
            self._interfere()
        else:
            self._emulator = self._start_emulator(f"{seed}-{self.name}")

    def _start_emulator(self, seed: str) -> socket.socket:
        mobile_side, core_side = self._network.tuns[self.name]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = [mobile_side, core_side, theirs.fileno()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "msocks_lab.emulator", *map(str, fds)], pass_fds=fds, stdin=subprocess.DEVNULL
        )
        theirs.close()
        ours.settimeout(_PATIENCE)
        start = {"seed": seed, "shapes": self._shapes_as_dicts(), "cut": self._drops()}
        ours.send(json.dumps(start).encode())
        return ours

    def wait_ready(self) -> None:
        """Return when the emulator carries packets. Raises SetupError."""
        if self._emulator is not None:
            self._ask_emulator(None)

    def _ask_emulator(self, command: Mapping[str, Any] | None) -> dict[str, Any]:
        """Send a command, unless it is None because one is under way, and wait for the answer. Raises SetupError."""
        assert self._emulator is not None
        try:
            if command is not None:
                self._emulator.send(json.dumps(command).encode())
            answer = self._emulator.recv(65536)
        except OSError:
            answer = b""
        if not answer:
            raise SetupError(f"The emulator of {self.name} does not answer", "See the lab's supervisor.log")
        decoded: dict[str, Any] = json.loads(answer)
        return decoded

    def _shapes_as_dicts(self) -> dict[str, Any]:
        return {side: asdict(shape) for side, shape in self._shapes.items()}

    def _drops(self) -> dict[str, bool]:
        # A link that is gone in whatever way also swallows what is under way, and lets no ICMP error tell of it.
        gone = not self._attached or (self._cut_mode is not None and self._cut_mode.takes_interface)
        return {side: gone or cut for side, cut in self._cut_sides.items()}

    def _interfere(self) -> None:
        """Let the emulator and the access router treat packets as the link's state says."""
        drops, reset = self._drops(), self._cut_mode is CutMode.RESET
        router = self._network.nodes[self.plan.radio]
        if self._emulator is None:
            firewall.interfere(router, drops, reset)
            return
        if reset != self._resetting:  # nftables takes milliseconds, so only where it is needed
            firewall.interfere(router, {}, reset)
            self._resetting = reset
        self._ask_emulator({"cut": drops})

    def describe(self) -> dict[str, Any]:
        """The link's present state."""
        if not self._attached:
            state = "detached"
        elif self._cut_mode is not None:
            state = f"cut ({self._cut_mode.value})"
            sides = [side for side, cut in self._cut_sides.items() if cut]
            if self._cut_mode is CutMode.SILENT and len(sides) == 1:
                state = f"cut (silent, {sides[0]})"
        elif self.gateway.is_captive:
            state = "captive"
        else:
            state = "up"
        return {
            "name": self.name,
            "state": state,
            "addresses": list(self.plan.addresses) if self._attached else [],
            "public_address": self.plan.public_ipv4 if self.plan.link.nat else None,
            "mtu": self._mtu,
            "fat": self.plan.link.fat,
            "nat": self.plan.link.nat,
            "pep": self.gateway.has_pep,
            **self._shapes_as_dicts(),
        }

    def cut(self, mode: str, direction: str) -> None:
        """Let the link go away; a second cut replaces the first."""
        chosen, sides = CutMode(mode), Direction(direction)
        if chosen is not CutMode.SILENT and sides is not Direction.BOTH:
            raise CommandError(f"A {chosen.value} cut has no direction", "Only a silent cut can be one-way")
        if chosen is CutMode.RESET and self.gateway.has_pep:
            raise CommandError(f"{self.name} has a PEP, which ends TCP itself", "Use `lose-pep --reset`")
        before, self._cut_mode = self._cut_mode, chosen
        silent = chosen is CutMode.SILENT
        self._cut_sides = {side: silent and Direction(side) in sides.parts for side in ("up", "down")}
        match chosen:
            case CutMode.CARRIER:
                self._network.nodes[self.plan.radio].down("mobile")
            case CutMode.ADMIN:
                self._network.nodes["mobile"].down(self.name)
        self._interfere()  # before all that takes time: what is under way is lost together with the link
        if chosen is CutMode.CARRIER:
            # Sockets may have kept an IPv6 route from before. What they send on a dead interface asks for the
            # gateway's address in vain, once a second; when the link is back, all wait for the next time.
            self._network.withdraw_routes(self.plan)
        if before is not chosen and before is not None and before.takes_interface:
            self._give_interface_back(before)

    def _give_interface_back(self, mode: CutMode | None) -> None:
        if mode is CutMode.CARRIER:
            self._network.connect_radio(self.plan)
        elif mode is CutMode.ADMIN:
            self._network.nodes["mobile"].up(self.name)
        if self._attached and not (self._cut_mode and self._cut_mode.takes_interface):
            self._network.configure_mobile(self.plan)

    def restore(self) -> None:
        """Undo any cut; addresses and routes of the mobile are there again."""
        mode, self._cut_mode, self._cut_sides = self._cut_mode, None, {"up": False, "down": False}
        # First the path, then the interface: who dials at the news of the interface must not lose the SYN.
        self._interfere()
        if mode is not None and mode.takes_interface:
            self._give_interface_back(mode)

    def detach(self) -> None:
        """Take the mobile's addresses and routes away."""
        if not self._attached:
            raise CommandError(f"{self.name} is detached already", "Use `attach` to give it addresses")
        self._attached = False
        self._network.nodes["mobile"].flush_addresses(self.name)
        self._interfere()

    def attach(self) -> None:
        """Give the mobile its addresses and routes."""
        if self._attached:
            raise CommandError(f"{self.name} is attached already", "Use `restore` to undo a cut")
        if self._cut_mode is not None:
            raise CommandError(f"{self.name} is {self.describe()['state']}", "Use `restore` first")
        self._attached = True
        self._interfere()
        self._network.configure_mobile(self.plan)

    def readdress(self) -> None:
        """Replace the mobile's addresses by new ones of the same subnets."""
        if not self._attached or (self._cut_mode and self._cut_mode.takes_interface):
            raise CommandError(f"{self.name} is {self.describe()['state']}", "Use `attach` or `restore` first")
        self.plan = replace(self.plan, lease=self.plan.lease + 1)
        self._network.nodes["mobile"].flush_addresses(self.name)
        self._network.configure_mobile(self.plan)

    def lose_family(self, version: int) -> None:
        """Take the mobile's addresses and routes of one IP version away; the other stays."""
        if not self._attached or (self._cut_mode and self._cut_mode.takes_interface):
            raise CommandError(f"{self.name} is {self.describe()['state']}", "Use `attach` or `restore` first")
        if len(self.plan.addresses) < 2:
            raise CommandError(f"{self.name} has one IP version only", "Use `detach` to take that away")
        self.plan = replace(self.plan, lost=version)
        self._network.nodes["mobile"].flush_addresses(self.name, [_FAMILIES[version]])

    def regain_family(self) -> None:
        """Give the mobile both IP versions again."""
        self.plan = replace(self.plan, lost=0)
        if self._attached and not (self._cut_mode and self._cut_mode.takes_interface):
            self._network.configure_mobile(self.plan)

    def lose_pep(self, how: str) -> None:
        """Let the middlebox forget all connections and what it holds: "vanish" or "reset"."""
        self.gateway.ask_pep({"lose": how})

    def portal(self, kind: str, udp: bool) -> None:
        """Let nothing through, and answer TCP in everybody's place."""
        self.gateway.close_portal(kind, udp)

    def log_in(self) -> None:
        """Let everything through again."""
        self.gateway.log_in()

    def rebind_nat(self) -> None:
        """Let the NAT forget all mappings."""
        if not self.plan.link.nat:
            raise CommandError(f"{self.name} has no NAT", "Build the lab with `nat` on this link")
        self._network.nodes[self.plan.radio].flush_conntrack()

    def change(self, changes: Mapping[str, Mapping[str, Any]], mtu: int | None) -> None:
        """Change shapes ({"up" | "down" | "both": {field: value}}) and the path's MTU. Raises ConfigError, too."""
        if changes:
            if self._emulator is None:
                raise CommandError(f"{self.name} is fat: nothing emulates it", "Build the lab without `fat`")
            shapes = dict(self._shapes)
            for direction, values in changes.items():
                for side in Direction(direction).parts:
                    shapes[side] = replace(shapes[side], **values)
            self._shapes = shapes
            self._ask_emulator({"shapes": self._shapes_as_dicts()})
        if mtu is not None:
            replace(self.plan.link, mtu=mtu)  # checks it
            self._mtu = mtu
            self._network.nodes[self.plan.radio].set_mtu("air", mtu)
            self._network.nodes["core"].set_mtu(self.name, mtu)

    def counters(self) -> dict[str, Any]:
        """Of the mobile's interface, and of the emulator where there is one."""
        interface = self._network.nodes["mobile"].counters(self.name)
        emulator = self._ask_emulator({})["counters"] if self._emulator is not None else None
        return {"interface": interface, "emulator": emulator}
