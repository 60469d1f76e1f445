"""What the mobile node knows of the way to the proxy over one link."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Sequence

from msocks.client.path_probe import ProbeSocket
from msocks.errors import LinkCaptive
from msocks.session.path_health import PathHealth
from msocks.session.path_state import PathState
from msocks.session.split_path import SplitPath
from msocks.values.endpoint import Endpoint
from msocks.values.link import Link, LinkState


class LinkPath:
    """The state that `msocks.client.path_watch` keeps for one link.

    Attributes:
        link: The link as the kernel sees it.
        health: Decides whether the path lives; None while the link is down.
        probes: The sockets for probes, by the proxy's address.
        answering: The address that answered last.
        captive: How something else than the proxy answers on this link; None where nothing does.
        split: Decides whether a middlebox ACKs in the proxy's place.
        public: Where the proxy saw the last probe come from, and
        public_at: when its answer came.
        timer: For the next decision, and
        due: when that is; infinity where there is none.
        rechecked: Whether the kernel was asked about the present suspicion.
        looked_at: When all its connections were looked at last.
        heard_on: The one that something was heard on last, as far as that was looked for.
        refused_at: When the proxy's host has said last that nobody listens, and
        refused_since: when the first time in a row.
        shown: What the subscribers know: see `picture`.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.health: PathHealth | None = None
        self.probes: dict[Endpoint, ProbeSocket] = {}
        self.answering: Endpoint | None = None
        self.captive: LinkCaptive | None = None
        self.split = SplitPath()
        self.public: Endpoint | None = None
        self.public_at = -math.inf
        self.timer: asyncio.TimerHandle | None = None
        self.due = math.inf
        self.rechecked = False
        self.looked_at = -math.inf
        self.heard_on: socket.socket | None = None
        self.refused_since = self.refused_at = -math.inf
        self.shown = (LinkState.DOWN, False, False)
        self._tries = 0
        self._sampled = 0

    @property
    def state(self) -> LinkState:
        """What the link can do, all taken together."""
        if self.health is None:
            return LinkState.DOWN
        if self.captive is not None:
            return LinkState.CAPTIVE
        return LinkState.SILENT if self.health.state is PathState.SILENT else LinkState.UP

    @property
    def proven(self) -> bool:
        """Whether the proxy has been heard over it, and nothing speaks against it since."""
        return self.state is LinkState.UP and self.health is not None and self.health.state is PathState.ALIVE

    @property
    def loss_percent(self) -> float | None:
        """Of what is sent over it, what is lost; None while it is down."""
        return None if self.health is None else 100 * self.health.loss.share

    @property
    def picture(self) -> tuple[LinkState, bool, bool]:
        """What subscribers are told of changes of: state, proven, split."""
        return self.state, self.proven, self.split.is_split

    @property
    def source_is_gone(self) -> bool:
        """Whether probes left from an address that the link has no more: the host is somewhere else."""
        return any(probe.source not in self.link.addresses for probe in self.probes.values())

    def next_endpoint(self, candidates: Sequence[Endpoint]) -> Endpoint | None:
        """The address to probe: the one that answers; as long as none does, each in turn. None where there is none."""
        if not candidates:
            return None
        if self.answering in candidates and self.health is not None and self.health.state is PathState.ALIVE:
            return self.answering
        self._tries += 1
        return candidates[(self._tries - 1) % len(candidates)]

    def sample(self, connections: Sequence[socket.socket], most: int) -> list[socket.socket]:
        """Some of the link's connections: the one that was heard last, and others in turn."""
        if len(connections) <= most:
            return list(connections)
        heard_on = self.heard_on
        chosen = [heard_on] if heard_on is not None and heard_on in connections else []
        chosen += [connections[(self._sampled + i) % len(connections)] for i in range(most)]
        self._sampled += most
        return chosen

    def close(self) -> None:
        """Ask no more, and forget what was found out."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.due = math.inf
        for probe in self.probes.values():
            probe.close()
        self.probes.clear()
        self.health = self.answering = self.public = self.captive = None
        self.split = SplitPath(assumed=self.split.is_split)
