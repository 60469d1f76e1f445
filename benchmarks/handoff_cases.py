"""What happens to the network while a transfer runs, and the instants from which its stalls count."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

from benchmarks.contenders import Contender, Msocks, PlainTcp
from benchmarks.interleave import Wait
from benchmarks.mptcp_contenders import MptcpBackup, MptcpSocks
from benchmarks.stalls import WATCHED_S, Moment
from benchmarks.summary import Target
from benchmarks.wireguard import WireGuard
from msocks_lab import LTE, STANDARD_LAB, WIFI, CutMode, Lab, LabConfig

MOBILE: tuple[type[Contender], ...] = (Msocks, MptcpBackup, MptcpSocks, WireGuard)

RTT_DIFFERENCE_MS = LTE.rtt_ms - WIFI.rtt_ms
BOTH = ("download", "upload")
OUTAGES_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_JUDGED_S = (1.0, 5.0, 30.0)  # the others are for the plot: downloads, beside the best of the others

_BLOATED = LabConfig([replace(link, queue_ms=500) for link in STANDARD_LAB.links])
_IPV6 = LabConfig([replace(link, ipv4=False) for link in STANDARD_LAB.links])

SETTLED_S = 1.0
"""How long after the event (after the new link was there) the server's side is looked at again."""

Look = Callable[[], None]
"""Takes a sample of the server's side: just before each event, and `SETTLED_S` after each but the last."""

Play = Generator[Wait, None, list[Moment]]
"""Yields while there is nothing to do."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What one event is called on the page, and what MSOCKS has to keep in each direction: ms of the longest gap."""

    name: str
    title: str
    download: Target
    upload: Target

    def target(self, direction: str) -> Target:
        """That of a direction."""
        return self.download if direction == "download" else self.upload


def _figure(name: str, title: str, download: float | None = None, upload: float | None = None) -> Figure:
    return Figure(name, title, Target(download), Target(download if upload is None else upload))


@dataclass(frozen=True, slots=True)
class Case(ABC):
    """One kind of move.

    `links` are up at the start. `play` is called when `under_way_bytes` have crossed them and `warm_s` has passed
    since. `ipv6` lets client and server use it; `congestion` is the server's congestion control where it is not the
    lab's.
    """

    name: str
    figures: tuple[Figure, ...]
    contenders: tuple[type[Contender], ...] = MOBILE
    directions: tuple[str, ...] = BOTH
    transfer_bytes: int = 16_000_000  # enough for 1.5 s on Wi-Fi, and `WATCHED_S` and more on LTE
    config: LabConfig = STANDARD_LAB
    ipv6: bool = False
    congestion: str = ""
    links: tuple[str, ...] = ("wifi", "lte")
    under_way_bytes: int = 1_000_000
    warm_s: float = 0.5
    waits_s: float = 0.0  # for a link

    def prepare(self, lab: Lab) -> None:
        """Before anything is started."""
        if self.congestion:
            lab.server.run(["sysctl", "-qw", f"net.ipv4.tcp_congestion_control={self.congestion}"])
        for link in lab.links:
            if link.name not in self.links:
                link.cut(CutMode.CARRIER)

    @abstractmethod
    def play(self, lab: Lab, contender: Contender, look: Look) -> Play:
        """Do it, while data flows. Raises BenchmarkError where the contender refuses."""


class LinkDown(Case):
    """Wi-Fi loses its carrier; LTE is up."""

    def play(self, lab: Lab, contender: Contender, look: Look) -> Play:
        yield from ()
        look()
        return [Moment(self.name, lab.link("wifi").cut(CutMode.CARRIER).began)]


class Silent(Case):
    """Wi-Fi keeps its carrier, but every packet vanishes; LTE is up."""

    def play(self, lab: Lab, contender: Contender, look: Look) -> Play:
        yield from ()
        look()
        return [Moment(self.name, lab.link("wifi").cut(CutMode.SILENT).began)]


class NoLink(Case):
    """Wi-Fi loses its carrier; LTE, which was not there, comes later."""

    def play(self, lab: Lab, contender: Contender, look: Look) -> Play:
        look()
        gone = lab.link("wifi").cut(CutMode.CARRIER)
        back_at = gone.done + self.waits_s
        yield Wait(back_at)
        time.sleep(max(0.0, back_at - time.monotonic()))
        back = lab.link("lte").restore()
        return [Moment(self.name, gone.began, back.done)]


class ExplicitMove(Case):
    """`msocks move` to LTE, and back; both links are up all the time."""

    def play(self, lab: Lab, contender: Contender, look: Look) -> Play:
        assert isinstance(contender, Msocks)
        yield from ()
        moments = []
        for figure, link in zip(self.figures, ("lte", "wifi"), strict=True):
            look()
            began = time.monotonic()
            moments.append(Moment(figure.name, began))
            contender.move(link)
            if figure is not self.figures[-1]:
                time.sleep(max(0.0, began + SETTLED_S - time.monotonic()))
                look()
                time.sleep(max(0.0, began + WATCHED_S - time.monotonic()))
        return moments


class NoMove(Case):
    """Nothing happens: what one connection over LTE alone does by itself, from its beginning on."""

    def play(self, lab: Lab, contender: Contender, look: Look) -> Play:
        yield from ()
        look()
        return [Moment(self.name, time.monotonic())]


def _gone(seconds: float) -> Case:
    name = f"gone-{seconds:g}s"
    judged = seconds in _JUDGED_S
    return NoLink(
        name=name,
        figures=(_figure(name, f"no link for {seconds:g} s, then LTE: excess", 120),),
        contenders=MOBILE if judged else (Msocks, MptcpBackup),
        directions=BOTH if judged else ("download",),
        links=("wifi",),
        waits_s=seconds,
    )


def _moves(name: str, title: str) -> tuple[Figure, ...]:
    most = RTT_DIFFERENCE_MS + 20
    return (
        _figure(f"{name}-lte", f"`msocks move` to LTE{title}", most),
        _figure(f"{name}-wifi", f"`msocks move` to Wi-Fi{title}", most),
    )


_MOVE_BYTES = 38_000_000

CASES: tuple[Case, ...] = (
    LinkDown("down", (_figure("down", "Wi-Fi goes down", 60, 50),)),
    Silent("silent", (_figure("silent", "Wi-Fi goes silent", 300),)),
    *(_gone(seconds) for seconds in OUTAGES_S),
    ExplicitMove("move", _moves("move", ""), (Msocks,), transfer_bytes=_MOVE_BYTES),
    Silent(
        "silent-queue",
        (_figure("silent-queue", "Wi-Fi goes silent, queues of 500 ms", 800),),
        (Msocks,),
        transfer_bytes=20_000_000,
        config=_BLOATED,
    ),
    LinkDown("down-ipv6", (_figure("down-ipv6", "Wi-Fi goes down, IPv6", 60, 50),), (Msocks,), config=_IPV6, ipv6=True),
    ExplicitMove(
        "move-ipv6", _moves("move-ipv6", ", IPv6"), (Msocks,), transfer_bytes=_MOVE_BYTES, config=_IPV6, ipv6=True
    ),
    LinkDown(
        "down-bbr",
        (_figure("down-bbr", "Wi-Fi goes down, BBR server", 60, 50),),
        (Msocks,),
        ("download",),
        congestion="bbr",
    ),
    ExplicitMove(
        "move-bbr",
        _moves("move-bbr", ", BBR server"),
        (Msocks,),
        ("download",),
        transfer_bytes=_MOVE_BYTES,
        congestion="bbr",
    ),
    NoLink(
        "gone-1s-bbr",
        (_figure("gone-1s-bbr", "no link for 1 s, then LTE: excess, BBR server", 120),),
        (Msocks,),
        ("download",),
        congestion="bbr",
        links=("wifi",),
        waits_s=1.0,
    ),
    NoMove(
        "none",
        (_figure("none", "nothing happens (LTE alone, from the start)"),),
        (PlainTcp,),
        links=("lte",),
        under_way_bytes=20_000,
        warm_s=0.0,
    ),
)
