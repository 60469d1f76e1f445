"""What is going to happen in a run, all of it decided by its seed before it begins: so a failing seed can be replayed.

Pure. The plan says when which link is disturbed and how long, when the proxy is killed, the agent stopped, the clock
set; and for each of the places where sessions run side by side, which session follows which.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from msocks_lab import LinkConfig

LINKS = ("wifi", "lte", "sat")
_FIRST_S = 2.0
_PAUSE_S = (0.1, 1.6)


class Cause(StrEnum):
    """What can happen. The value is what is printed."""

    MOVE_ONE = "msocks move, one flow"
    MOVE_ALL = "msocks move, all flows"
    CARRIER = "carrier lost"
    ADMIN = "interface set down"
    SILENT = "silent"
    RESET = "connections reset"
    NO_LINK = "no link at all"
    READDRESS = "new address"
    REBIND = "NAT forgets"
    FAMILY = "one IP version gone"
    MTU = "path MTU"
    LOSS = "loss burst"
    REORDER = "reordering and duplication"
    AGENT_STOPPED = "agent stopped"
    CLOCK = "clock set"
    PROXY_KILLED = "proxy killed"


_CUTS = (Cause.CARRIER, Cause.ADMIN, Cause.SILENT, Cause.RESET)
_SHAPES = (Cause.MTU, Cause.LOSS, Cause.REORDER)
_WEIGHTS = {
    Cause.MOVE_ONE: 6,
    Cause.MOVE_ALL: 2,
    Cause.CARRIER: 3,
    Cause.ADMIN: 2,
    Cause.SILENT: 3,
    Cause.RESET: 2,
    Cause.NO_LINK: 2,
    Cause.READDRESS: 2,
    Cause.REBIND: 2,
    Cause.FAMILY: 2,
    Cause.MTU: 2,
    Cause.LOSS: 2,
    Cause.REORDER: 2,
    Cause.AGENT_STOPPED: 1,
    Cause.CLOCK: 1,
    Cause.PROXY_KILLED: 2,
}


@dataclass(frozen=True, slots=True)
class Disturbance:
    """One thing that happens, `at` seconds after the beginning.

    `link` is empty where it concerns none. `lasts` (seconds) is until it is undone, or until the next proxy begins;
    0 where nothing is undone. `value` is the path MTU in bytes, the loss or reordering in percent, the clock's step in
    seconds, the IP version, or a number that chooses among the flows there are.
    """

    at: float
    cause: Cause
    link: str = ""
    lasts: float = 0.0
    value: float = 0.0


class Kind(StrEnum):
    """Kinds of sessions. The value is what is printed."""

    DOWNLOAD = "download"
    UPLOAD = "upload"
    BOTH = "both ways"
    EXCHANGE = "requests and responses"
    IDLE = "mostly idle"
    CLIENT_ENDS_FIRST = "half-closed by the client"
    SERVER_ENDS_FIRST = "half-closed by the server"
    SERVER_RESETS = "reset by the server"
    CLIENT_RESETS = "reset by the client"


@dataclass(frozen=True, slots=True)
class Transfer:
    """One session: bytes each way and their rate limit (bytes per second, 0 none), or round trips and their interval.

    The server resets it after `abort_after` bytes, the client after `reset_after`; 0 never.
    """

    kind: Kind
    seed: int
    download: int = 0
    upload: int = 0
    rate: int = 0
    round_trips: int = 0
    interval: float = 0.0
    abort_after: int = 0
    reset_after: int = 0


def links(seed: int) -> tuple[LinkConfig, ...]:
    """The uplinks of a run: always one with both families, and often others with one of them, or behind a NAT."""
    chance = random.Random(f"links {seed}")
    wifi = LinkConfig("wifi", rtt_ms=5, rate_mbit=50, nat=chance.random() < 0.5)
    lte = LinkConfig("lte", rtt_ms=50, rate_mbit=20, ipv4=chance.random() < 0.6, mtu=chance.choice((1500, 1400)))
    sat = LinkConfig("sat", rtt_ms=120, rate_mbit=10, ipv6=chance.random() < 0.5, nat=True)
    return wifi, lte, sat


def disturbances(seed: int, seconds: float, *, crashes: bool) -> list[Disturbance]:
    """Everything that happens in `seconds`, in order; all that is undone is undone by then. `crashes`: of the proxy."""
    chance = random.Random(f"disturbances {seed}")
    behind_nat = [link.name for link in links(seed) if link.nat]
    of_both_versions = [link.name for link in links(seed) if link.ipv4 and link.ipv6]
    some = {Cause.REBIND: behind_nat, Cause.FAMILY: of_both_versions}
    weights = {cause: weight for cause, weight in _WEIGHTS.items() if crashes or cause is not Cause.PROXY_KILLED}
    free = dict.fromkeys(LINKS, 0.0)  # when a link is whole again
    shaped = dict.fromkeys(LINKS, 0.0)
    whole = 0.0  # when proxy and agent both run again
    stopped = 0.0  # when the agent answers again
    planned: list[Disturbance] = []
    at = _FIRST_S
    while True:
        at = round(at + chance.uniform(*_PAUSE_S), 3)
        if at >= seconds:
            return planned
        cause = chance.choices(list(weights), list(weights.values()))[0]
        link = chance.choice(some.get(cause, LINKS))
        lasts, value = _extent(chance, cause)
        lasts = round(lasts, 3)
        if at + lasts >= seconds:
            continue
        if cause in _CUTS or cause in (Cause.READDRESS, Cause.REBIND, Cause.FAMILY):
            if free[link] > at:
                continue
            free[link] = at + lasts
        elif cause is Cause.NO_LINK:
            if max(free.values()) > at:
                continue
            free, link = dict.fromkeys(LINKS, at + lasts), ""
        elif cause in _SHAPES:
            if shaped[link] > at:
                continue
            shaped[link] = at + lasts
        elif cause in (Cause.MOVE_ONE, Cause.MOVE_ALL):
            if stopped > at:
                continue  # nobody would answer
        elif cause in (Cause.AGENT_STOPPED, Cause.PROXY_KILLED):
            if whole > at:
                continue
            whole, link = at + lasts, ""
            if cause is Cause.AGENT_STOPPED:
                stopped = whole
        elif cause is Cause.CLOCK:
            link = ""
        planned.append(Disturbance(at, cause, link, lasts, value))


def _extent(chance: random.Random, cause: Cause) -> tuple[float, float]:
    """How long, and how much."""
    match cause:
        case Cause.RESET:
            return chance.uniform(0.1, 1.0), 0
        case Cause.CARRIER | Cause.ADMIN | Cause.SILENT:
            return chance.uniform(0.2, 4.0), 0
        case Cause.NO_LINK:
            return chance.choice((chance.uniform(0.3, 2.0), chance.uniform(3.0, 8.0))), 0
        case Cause.FAMILY:
            return chance.uniform(0.5, 5.0), chance.choice((4, 6))
        case Cause.MTU:
            return chance.uniform(2.0, 6.0), chance.choice((1280, 1400, 1450))
        case Cause.LOSS:
            return chance.uniform(0.5, 4.0), round(chance.uniform(2, 25), 1)
        case Cause.REORDER:
            return chance.uniform(1.0, 4.0), round(chance.uniform(2, 20), 1)
        case Cause.AGENT_STOPPED:
            return chance.uniform(0.5, 6.0), 0
        case Cause.PROXY_KILLED:
            return chance.uniform(0.0, 2.0), 0
        case Cause.CLOCK:
            return 0.0, chance.choice((-86400, -3600, -30, 30, 3600, 86400))
        case _:
            return 0.0, chance.random()


def transfers(seed: int, place: int) -> Iterator[Transfer]:
    """The sessions that follow each other in one place, without an end."""
    chance = random.Random(f"transfers {seed} {place}")
    weights = {
        Kind.DOWNLOAD: 4,
        Kind.UPLOAD: 4,
        Kind.BOTH: 3,
        Kind.EXCHANGE: 3,
        Kind.IDLE: 2,
        Kind.CLIENT_ENDS_FIRST: 2,
        Kind.SERVER_ENDS_FIRST: 2,
        Kind.SERVER_RESETS: 1,
        Kind.CLIENT_RESETS: 1,
    }
    while True:
        kind = chance.choices(list(weights), list(weights.values()))[0]
        yield _transfer(chance, kind)


def _transfer(chance: random.Random, kind: Kind) -> Transfer:
    def amount() -> int:
        return int(100_000 * 100 ** chance.random())

    seed, rate = chance.randrange(1 << 30), chance.choice((0, 0, 200_000, 800_000))
    match kind:
        case Kind.DOWNLOAD:
            return Transfer(kind, seed, download=amount(), rate=rate)
        case Kind.UPLOAD:
            return Transfer(kind, seed, upload=amount(), rate=rate)
        case Kind.EXCHANGE:
            return Transfer(kind, seed, round_trips=chance.randrange(20, 200), interval=0.05)
        case Kind.IDLE:
            return Transfer(kind, seed, round_trips=3, interval=chance.uniform(3.0, 10.0))
        case Kind.SERVER_RESETS:
            download = amount()
            return Transfer(kind, seed, download=download, rate=rate, abort_after=max(1, download // 2))
        case Kind.CLIENT_RESETS:
            download = amount()
            return Transfer(kind, seed, download=download, rate=rate, reset_after=max(1, download // 2))
        case _:
            return Transfer(kind, seed, download=amount(), upload=amount(), rate=rate)
