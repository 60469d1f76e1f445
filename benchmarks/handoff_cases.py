"""What happens to the network while a transfer runs, and the instants from which its stalls count."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from benchmarks.contenders import MOBILE, Contender, Msocks, PlainTcp
from benchmarks.stalls import WATCHED_S, Moment
from benchmarks.summary import Target
from msocks_lab import CutMode, Event, Lab


class Case(ABC):
    """One kind of move."""

    name: str
    figures: ClassVar[Mapping[str, tuple[str, Target]]]  # by name: title, what MSOCKS has to keep
    contenders: tuple[type[Contender], ...] = MOBILE
    transfer_bytes = 20_000_000  # enough for 2 s on both links together, and `WATCHED_S` and more on LTE
    links: tuple[str, ...] = ("wifi", "lte")  # that are there at the start
    under_way_bytes = 2_000_000  # have crossed the links, and
    warm_s = 0.8  # has passed since then, when `play` is called

    def prepare(self, lab: Lab) -> None:
        """Before anything is started."""
        for link in lab.links:
            if link.name not in self.links:
                link.cut(CutMode.CARRIER)

    @abstractmethod
    def play(self, lab: Lab, contender: Contender) -> list[Moment]:
        """Do it, while data flows. Raises BenchmarkError where the contender refuses."""


class LinkDown(Case):
    """Wi-Fi loses its carrier; LTE is up."""

    name = "down"
    figures: ClassVar = {"down": ("Wi-Fi goes down", Target(200, 400))}

    def play(self, lab: Lab, contender: Contender) -> list[Moment]:
        return [Moment("down", lab.link("wifi").cut(CutMode.CARRIER).began)]


class Silent(Case):
    """Wi-Fi keeps its carrier, but every packet vanishes; LTE is up."""

    name = "silent"
    figures: ClassVar = {"silent": ("Wi-Fi goes silent", Target(600, 1500))}

    def play(self, lab: Lab, contender: Contender) -> list[Moment]:
        return [Moment("silent", lab.link("wifi").cut(CutMode.SILENT).began)]


class NoLink(Case):
    """Wi-Fi loses its carrier; LTE, which was not there, comes later."""

    links = ("wifi",)
    seconds: float

    def play(self, lab: Lab, contender: Contender) -> list[Moment]:
        gone = lab.link("wifi").cut(CutMode.CARRIER)
        time.sleep(max(0.0, gone.done + self.seconds - time.monotonic()))
        back: Event = lab.link("lte").restore()
        return [Moment(self.name, gone.began, back.done)]


class NoLink1(NoLink):
    """For 1 s."""

    name = "gone-1s"
    seconds = 1.0
    figures: ClassVar = {"gone-1s": ("no link for 1 s, then LTE: excess", Target(250, None))}


class NoLink5(NoLink):
    """For 5 s."""

    name = "gone-5s"
    seconds = 5.0
    figures: ClassVar = {"gone-5s": ("no link for 5 s, then LTE: excess", Target(250, None))}


class ExplicitMove(Case):
    """`msocks move` to LTE, and back; both links are up all the time."""

    name = "move"
    figures: ClassVar = {
        "move-lte": ("`msocks move` to LTE", Target(150, 150)),
        "move-wifi": ("`msocks move` to Wi-Fi", Target(150, 150)),
    }
    contenders = (Msocks,)
    transfer_bytes = 40_000_000

    def play(self, lab: Lab, contender: Contender) -> list[Moment]:
        assert isinstance(contender, Msocks)
        moments = []
        for link in ("lte", "wifi"):
            moments.append(Moment(f"move-{link}", time.monotonic()))
            contender.move(link)
            time.sleep(WATCHED_S)
        return moments


class NoMove(Case):
    """Nothing happens: what one connection over LTE alone does by itself, from its beginning on."""

    name = "none"
    links = ("lte",)
    figures: ClassVar = {"none": ("nothing happens (LTE alone, from the start)", Target())}
    contenders = (PlainTcp,)
    under_way_bytes = 20_000
    warm_s = 0.0

    def play(self, lab: Lab, contender: Contender) -> list[Moment]:
        return [Moment("none", time.monotonic())]


CASES: tuple[type[Case], ...] = (LinkDown, Silent, NoLink1, NoLink5, ExplicitMove, NoMove)
