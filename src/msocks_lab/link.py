"""One uplink as a test or a person disturbs it and looks at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msocks_lab.config import CutMode, Direction, PortalKind
from msocks_lab.errors import SetupError

if TYPE_CHECKING:
    from msocks_lab.lab import Lab


@dataclass(frozen=True, slots=True)
class Event:
    """A change of a link. `began` and `done` are seconds of CLOCK_MONOTONIC: the change took effect in between."""

    action: str
    link: str
    arguments: Mapping[str, Any]
    began: float
    done: float


@dataclass(frozen=True, slots=True)
class LinkCounters:
    """Bytes and packets that crossed the mobile's interface: IP packets and 14 bytes of Ethernet header each."""

    bytes_up: int
    bytes_down: int
    packets_up: int
    packets_down: int

    def since(self, earlier: LinkCounters) -> LinkCounters:
        """What has been added since an earlier reading."""
        return LinkCounters(
            self.bytes_up - earlier.bytes_up,
            self.bytes_down - earlier.bytes_down,
            self.packets_up - earlier.packets_up,
            self.packets_down - earlier.packets_down,
        )


@dataclass(frozen=True, slots=True)
class PepState:
    """What a link's middlebox has: connections of the mobile's, and bytes that it has ACKed and the far end has not."""

    connections: int
    held_up: int
    held_down: int


class Link:
    """One uplink of the mobile. What changes it returns the Event; CommandError where its state does not allow it."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab = lab
        self.name = name

    def _act(self, action: str, **arguments: Any) -> Event:
        return Event(**self._lab.call("act", action=action, link=self.name, arguments=arguments))

    def cut(self, mode: CutMode = CutMode.SILENT, direction: Direction = Direction.BOTH) -> Event:
        """Let the link go away. Only a silent cut can be one-way. What is under way is lost in every mode."""
        return self._act("cut", mode=mode.value, direction=direction.value)

    def restore(self) -> Event:
        """Undo a cut; carrier, addresses and default routes are there again when it returns."""
        return self._act("restore")

    def detach(self) -> Event:
        """Take the mobile's addresses and routes away; the interface stays up."""
        return self._act("detach")

    def attach(self) -> Event:
        """Give the mobile its addresses and routes."""
        return self._act("attach")

    def readdress(self) -> Event:
        """Replace the mobile's addresses on this link by new ones."""
        return self._act("readdress")

    def lose_family(self, version: int) -> Event:
        """Take the mobile's addresses and routes of one IP version (4 or 6) away; the other goes on."""
        return self._act("lose_family", version=version)

    def regain_family(self) -> Event:
        """Undo that: the same addresses are there again."""
        return self._act("regain_family")

    def rebind_nat(self) -> Event:
        """Let the link's NAT forget its mappings: UDP gets a new port, established TCP connections are dead."""
        return self._act("rebind_nat")

    def lose_pep(self, *, reset: bool = False) -> Event:
        """Let the link's middlebox forget its connections and all that they hold; with `reset` both ends are told."""
        return self._act("lose_pep", how="reset" if reset else "vanish")

    def pep(self) -> PepState:
        """What the link's middlebox has now. Raises CommandError where there is none."""
        told = self._lab.call("pep", link=self.name)
        return PepState(told["connections"], told["held"]["up"], told["held"]["down"])

    def portal(self, kind: PortalKind = PortalKind.HTTP, *, udp: bool = False) -> Event:
        """Make the link captive: nothing is let through, TCP is answered in the place of whoever was called.

        With `udp` datagrams are answered as well, with what was said; else they are dropped. Connections that exist are
        reset with their next packet.
        """
        return self._act("portal", kind=kind.value, udp=udp)

    def log_in(self) -> Event:
        """Let everything through again."""
        return self._act("log_in")

    def set(self, direction: Direction = Direction.BOTH, mtu: int | None = None, **shape: float | None) -> Event:
        """Change fields of `Shape` in one or both directions (`rtt_ms` for half of it each way), or the path's MTU."""
        if "rtt_ms" in shape:
            shape["delay_ms"] = (shape.pop("rtt_ms") or 0.0) / 2
        return self.change({direction.value: shape} if shape else {}, mtu)

    def change(self, changes: Mapping[str, Mapping[str, float | None]], mtu: int | None = None) -> Event:
        """The same with changes of several directions at once, as `config.parse_changes` gives them."""
        return self._act("change", changes=changes, mtu=mtu)

    def counters(self) -> LinkCounters:
        """What has crossed the mobile's interface so far."""
        seen = self._lab.call("counters", link=self.name)["interface"]
        return LinkCounters(seen["tx_bytes"], seen["rx_bytes"], seen["tx_packets"], seen["rx_packets"])

    def emulator_counters(self) -> dict[str, dict[str, int]]:
        """The `shaping.PipeCounters` of "up" and "down". Raises SetupError for a fat link."""
        counters = self._lab.call("counters", link=self.name)["emulator"]
        if counters is None:
            raise SetupError(f"{self.name} is fat: it has no emulator", "Build the lab without `fat`")
        return dict(counters)

    def describe(self) -> dict[str, Any]:
        """State, addresses and shapes at present."""
        found: list[dict[str, Any]] = self._lab.call("describe")["links"]
        return next(link for link in found if link["name"] == self.name)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The mobile's present addresses on this link, IPv4 first."""
        return tuple(self.describe()["addresses"])
