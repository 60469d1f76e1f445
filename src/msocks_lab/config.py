"""What a lab looks like: its links and how each of them behaves. Plain values, no input or output."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Self

from msocks_lab.errors import ConfigError

_INTERFACE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,12}\Z")
_RESERVED_NAMES = frozenset({"lo", "mobile", "proxy", "server", "core", "all", "default", "eth0"})
_MOST_LINKS = 15


class Direction(StrEnum):
    """A direction of traffic as the mobile sees it."""

    UP = "up"
    DOWN = "down"
    BOTH = "both"

    @property
    def parts(self) -> tuple[Direction, ...]:
        """The single directions that this one stands for."""
        return (Direction.UP, Direction.DOWN) if self is Direction.BOTH else (self,)


class CutMode(StrEnum):
    """How a link goes away.

    SILENT: carrier, addresses and routes stay, packets vanish. CARRIER: the mobile's interface loses its
    carrier. ADMIN: the mobile's interface is set down, as by `ip link set NAME down`. RESET: the access router
    answers every TCP packet with RST, as a firewall that has lost its state; other packets pass.
    """

    SILENT = "silent"
    CARRIER = "carrier"
    ADMIN = "admin"
    RESET = "reset"

    @property
    def takes_interface(self) -> bool:
        """Whether the mobile's interface is without carrier or down."""
        return self in (CutMode.CARRIER, CutMode.ADMIN)


class PortalKind(StrEnum):
    """What a captive portal says to every TCP connection; see `msocks_lab.portal`."""

    HTTP = "http"
    CERTIFICATE = "certificate"
    GARBAGE = "garbage"
    MUTE = "mute"
    CLOSE = "close"


@dataclass(frozen=True, slots=True)
class Shape:
    """One direction of a link.

    `delay_ms` is one way; `rate_mbit` counts IP packets (10^6 bit/s), None is unlimited. The queue is drop-tail
    before the serialiser, `queue_ms` of data at that rate, or `queue_bytes` where that is given. `jitter_ms` adds
    a uniform 0..jitter to the delay and keeps order. Of every 100 packets `loss_percent` vanish,
    `duplicate_percent` arrive twice and `reorder_percent` are held back by `reorder_ms`, so that later ones
    overtake them.
    """

    delay_ms: float = 0.0
    rate_mbit: float | None = None
    queue_ms: float = 100.0
    queue_bytes: int | None = None
    jitter_ms: float = 0.0
    loss_percent: float = 0.0
    duplicate_percent: float = 0.0
    reorder_percent: float = 0.0
    reorder_ms: float = 5.0

    def __post_init__(self) -> None:
        for name in ("delay_ms", "queue_ms", "jitter_ms", "reorder_ms"):
            if not 0 <= getattr(self, name) <= 60_000:
                raise ConfigError(f"{name} is {getattr(self, name)}", "Give a time from 0 to 60000 ms")
        for name in ("loss_percent", "duplicate_percent", "reorder_percent"):
            if not 0 <= getattr(self, name) <= 100:
                raise ConfigError(f"{name} is {getattr(self, name)}", "Give a percentage from 0 to 100")
        if self.rate_mbit is not None and not 0.001 <= self.rate_mbit <= 100_000:
            raise ConfigError(f"rate_mbit is {self.rate_mbit}", "Give 0.001 to 100000 Mbit/s, or leave it out")
        if self.queue_bytes is not None and self.queue_bytes < 1:
            raise ConfigError(f"queue_bytes is {self.queue_bytes}", "Give a number above 0, or leave it out")

    @property
    def bytes_per_second(self) -> float | None:
        """The rate in bytes per second, None where it is unlimited."""
        return None if self.rate_mbit is None else self.rate_mbit * 125_000.0

    @property
    def queue_limit(self) -> float:
        """The queue's length in bytes, infinite where the rate is."""
        if self.queue_bytes is not None:
            return float(self.queue_bytes)
        rate = self.bytes_per_second
        return float("inf") if rate is None else rate * self.queue_ms / 1000.0


SHAPE_FIELDS = tuple(item.name for item in fields(Shape))


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """One uplink of the mobile: an interface called `name` (1-13 characters of a-z, 0-9, - and _).

    `rtt_ms` is split evenly over both directions; every further field of `Shape` holds for both. `up` or `down`,
    where given, replaces the shape of that direction. `fat` leaves the emulator out: plain veth forwarding at
    full speed. `mtu` holds on the whole path of the link; `interface_mtu`, where given, is what the mobile's
    interface believes, so that a smaller `mtu` has to be discovered. `nat` masquerades IPv4 behind the link's
    public address; the idle time-outs in seconds are those of its mappings. `pep` puts a middlebox into the access
    router that ends TCP in both directions and ACKs for the far end, with a buffer of `pep_buffer_bytes` for each
    direction of each connection. A link that is not `attached` has no address and no route until `attach`.
    """

    name: str
    rtt_ms: float = 0.0
    rate_mbit: float | None = None
    queue_ms: float = 100.0
    queue_bytes: int | None = None
    jitter_ms: float = 0.0
    loss_percent: float = 0.0
    duplicate_percent: float = 0.0
    reorder_percent: float = 0.0
    reorder_ms: float = 5.0
    up: Shape | None = None
    down: Shape | None = None
    fat: bool = False
    mtu: int = 1500
    interface_mtu: int | None = None
    ipv4: bool = True
    ipv6: bool = True
    nat: bool = False
    nat_tcp_idle_s: int = 7440
    nat_udp_idle_s: int = 30
    pep: bool = False
    pep_buffer_bytes: int = 262_144
    attached: bool = True

    def __post_init__(self) -> None:
        if not _INTERFACE_NAME.match(self.name) or self.name in _RESERVED_NAMES:
            raise ConfigError(
                f"{self.name!r} cannot name a link",
                "Use a letter and up to 12 letters, digits, - or _, and none of " + ", ".join(sorted(_RESERVED_NAMES)),
            )
        if not (self.ipv4 or self.ipv6):
            raise ConfigError(f"Link {self.name} has neither IPv4 nor IPv6", "Leave one of them on")
        smallest = 1280 if self.ipv6 else 576
        for mtu in (self.mtu, self.interface_mtu or self.mtu):
            if not smallest <= mtu <= 9000:
                raise ConfigError(f"Link {self.name} has an MTU of {mtu}", f"Give {smallest} to 9000 bytes")
        if self.nat and not self.ipv4:
            raise ConfigError(f"Link {self.name} has NAT but no IPv4", "NAT is for IPv4; leave one of the two out")
        if min(self.nat_tcp_idle_s, self.nat_udp_idle_s) < 1:
            raise ConfigError(f"Link {self.name} has a NAT time-out below 1 s", "Give whole seconds from 1")
        if self.pep and self.fat:
            raise ConfigError(f"Link {self.name} is fat: a PEP has nothing to bridge there", "Leave one of the two out")
        if self.pep_buffer_bytes < 1:
            raise ConfigError(f"pep_buffer_bytes is {self.pep_buffer_bytes}", "Give a number above 0")
        shapes = (self.shape(Direction.UP), self.shape(Direction.DOWN))
        if self.fat and any(shape != Shape() for shape in shapes):
            raise ConfigError(
                f"Link {self.name} is fat, so nothing emulates its delay, rate or loss",
                "Leave `fat` out, or the other values",
            )

    def shape(self, direction: Direction) -> Shape:
        """The shape of one direction (UP or DOWN)."""
        special = self.up if direction is Direction.UP else self.down
        if special is not None:
            return special
        common = {name: getattr(self, name) for name in SHAPE_FIELDS if name != "delay_ms"}
        return Shape(delay_ms=self.rtt_ms / 2, **common)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The reverse of `dataclasses.asdict`."""
        shapes = {key: Shape(**data[key]) if data.get(key) else None for key in ("up", "down")}
        return cls(**{**data, **shapes})


@dataclass(frozen=True, slots=True)
class LabConfig:
    """A whole lab. The order of `links` is the order of the metrics of the mobile's default routes.

    `seed` makes loss, jitter, duplication and reordering the same in every run with the same packets.
    """

    links: tuple[LinkConfig, ...] = field(default_factory=tuple)
    seed: int = 1

    def __init__(self, links: Iterable[LinkConfig] = (), seed: int = 1) -> None:
        object.__setattr__(self, "links", tuple(links))
        object.__setattr__(self, "seed", seed)
        names = [link.name for link in self.links]
        if len(set(names)) != len(names):
            raise ConfigError("Two links have the same name", "Give every link a name of its own")
        if len(names) > _MOST_LINKS:
            raise ConfigError(f"{len(names)} links are too many", f"A lab has at most {_MOST_LINKS}")

    def to_dict(self) -> dict[str, Any]:
        """A form that survives JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The reverse of `to_dict`."""
        return cls([LinkConfig.from_dict(link) for link in data["links"]], data["seed"])


WIFI = LinkConfig("wifi", rtt_ms=5, rate_mbit=50, queue_ms=100)
LTE = LinkConfig("lte", rtt_ms=50, rate_mbit=20, queue_ms=100)
#: The two uplinks that published figures speak of.
STANDARD_LAB = LabConfig([WIFI, LTE])

_ALIASES = {
    "rtt": "rtt_ms",
    "delay": "delay_ms",
    "rate": "rate_mbit",
    "queue": "queue_ms",
    "jitter": "jitter_ms",
    "loss": "loss_percent",
    "duplicate": "duplicate_percent",
    "reorder": "reorder_percent",
}
_FLAGS = {
    "v4only": {"ipv6": False},
    "v6only": {"ipv4": False},
    "nat": {"nat": True},
    "fat": {"fat": True},
    "pep": {"pep": True},
    "detached": {"attached": False},
}
_WHOLE = frozenset({"queue_bytes", "mtu", "interface_mtu", "nat_tcp_idle_s", "nat_udp_idle_s", "pep_buffer_bytes"})


def _number(key: str, text: str) -> float | int | None:
    if key == "rate_mbit" and text == "none":
        return None
    try:
        return int(text) if key in _WHOLE else float(text)
    except ValueError:
        raise ConfigError(f"{key}={text} is not a number", "Write for example rtt=5 or rate=12.5") from None


def parse_changes(items: Iterable[str]) -> dict[str, dict[str, float | int | None]]:
    """Read `KEY=VALUE` items as `msocks-lab set` takes them: {"up" | "down" | "both": {field of Shape: value}}.

    `rtt` becomes half of itself as the delay of both directions; `up.KEY` and `down.KEY` speak of one direction.
    Raises ConfigError.
    """
    changes: dict[str, dict[str, float | int | None]] = {}
    for item in items:
        left, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"{item!r} is not KEY=VALUE", "Write for example rate=10 or up.loss=5")
        side, dot, key = left.rpartition(".")
        key = _ALIASES.get(key, key)
        side = side if dot else "both"
        value = _number(key, text)
        if key == "rtt_ms" and side == "both" and value is not None:
            key, value = "delay_ms", value / 2
        if side not in ("up", "down", "both") or key not in SHAPE_FIELDS:
            known = ", ".join(sorted([*_ALIASES, *SHAPE_FIELDS]))
            raise ConfigError(f"{left!r} is no property of a link", f"Known: {known}, each also as up.KEY and down.KEY")
        changes.setdefault(side, {})[key] = value
    return changes


def parse_link(text: str) -> LinkConfig:
    """Read a link as `msocks-lab up --link` takes it: `wifi:rtt=5,rate=50,nat,up.loss=1`. Raises ConfigError."""
    name, _, rest = text.partition(":")
    values: dict[str, Any] = {}
    shaped: list[str] = []
    for item in filter(None, rest.split(",")):
        left, equals, value = item.partition("=")
        key = _ALIASES.get(left, left)
        if not equals:
            if left not in _FLAGS:
                raise ConfigError(f"{item!r} in link {name!r} is not understood", f"Known: {', '.join(_FLAGS)}")
            values |= _FLAGS[left]
        elif "." in left:
            shaped.append(item)
        elif key == "delay_ms" or key not in {item.name for item in fields(LinkConfig)} - {"name", "up", "down"}:
            raise ConfigError(f"A link has no {left!r}", f"Known: {', '.join(sorted(_ALIASES))}, {', '.join(_FLAGS)}")
        elif key in {"ipv4", "ipv6", "nat", "fat", "pep", "attached"}:
            raise ConfigError(f"{left!r} takes no value", f"Known: {', '.join(_FLAGS)}")
        else:
            values[key] = _number(key, value)
    link = LinkConfig(name, **values)
    for side, change in parse_changes(shaped).items():
        shape = link.shape(Direction(side))
        link = replace(link, **{side: replace(shape, **change)})  # type: ignore[arg-type]
    return link
