"""`msocks transparent`: the TCP connections of a whole host, or those that it forwards for others, go to the agent.

Nothing outlives the process in a way that could lock anybody out: the hooks are held by its descriptors, the table of
nftables by its netlink socket. What outlives a kill, a rule and a route for a mark that nobody sets then, the next
start sweeps away. And while no agent is there, or it hangs, both let go.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network

from msocks.errors import ConfigurationError
from msocks.interception import diversion
from msocks.interception.agent_link import AgentLink
from msocks.interception.cgroup import WholeHost
from msocks.interception.keeper import Keeper
from msocks.interception.local_addresses import local_networks
from msocks.interception.messages import Run
from msocks.interception.router import Router
from msocks.interception.serving import Part, serve_until

PRIVATE = tuple(map(ip_network, ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))
"""Private networks (RFC 1918, RFC 6598, RFC 4193), which proxies do not reach unless they are told to."""
DEFAULT_TAG = "transparent"


class OnOutage(StrEnum):
    """What becomes of new connections while the agent has no network, or no proxy."""

    WAIT = "wait"
    """They wait at the agent, as those of its other programs do."""
    DIRECT = "direct"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransparentSettings:
    """What `msocks transparent` is told.

    Attributes:
        host: Whether the connections of this host's own programs are taken.
        router: The interfaces by which those of other hosts come in that are taken.
        exclude: Destinations that are left alone.
        private: Whether connections to private networks are taken as well.
        on_outage: See `OnOutage`.
        tag: Of all the flows.
    """

    host: bool = False
    router: tuple[str, ...] = ()
    exclude: tuple[IPv4Network | IPv6Network, ...] = ()
    private: bool = False
    on_outage: OnOutage = OnOutage.WAIT
    tag: str = DEFAULT_TAG

    @property
    def excluded(self) -> set[IPv4Network | IPv6Network]:
        """All destinations that are left alone, besides this host's networks and the proxy."""
        return {*self.exclude, *(() if self.private else PRIVATE)}


class _Stop:
    """SIGTERM and SIGINT, as something to wait for."""

    looks_for_agent = False

    def __init__(self) -> None:
        self.came = False
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    @property
    def descriptors(self) -> set[int]:
        return {self._reader.fileno()}

    def serve(self, ready: Collection[int]) -> None:
        """It is the loop's end that matters."""

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()

    def _note(self, *_: object) -> None:
        self.came = True


def run(settings: TransparentSettings, path: str, on_ready: Callable[[], None]) -> None:
    """Take connections until SIGTERM or SIGINT.

    Args:
        settings: Which.
        path: The agent's socket for runs.
        on_ready: Called when they are taken.

    Raises:
        AgentUnavailable, RunRefused: There is no agent, or it does not serve this.
        CannotIntercept: The privilege is missing, or the host lacks something.
        ConfigurationError: Transparent mode runs here already.
    """
    in_outage = settings.on_outage is OnOutage.DIRECT
    with contextlib.ExitStack() as stack:
        stack.enter_context(_alone())
        stop = _Stop()
        stack.callback(stop.close)
        parts: list[Part] = [stop]
        if settings.host:
            link = AgentLink(path, Run(settings.tag, reach=True))
            keeper = Keeper(
                link,
                settings.excluded,
                group=WholeHost(),
                near=local_networks,
                lets_go=True,
                lets_go_in_outage=in_outage,
            )
            stack.callback(keeper.close)
            parts.append(keeper)
        if settings.router:
            router = Router(path, settings.router, settings.excluded, tag=settings.tag, lets_go_in_outage=in_outage)
            stack.callback(router.close)
            parts.append(router)
        else:
            if diversion.rules():
                diversion.remove()
        on_ready()
        serve_until(parts, lambda: stop.came)


def sweep() -> int:
    """Remove what a killed process has left; returns how many rules that was.

    Raises:
        CannotIntercept: The privilege is missing.
        ConfigurationError: Transparent mode runs here: stop it instead.
    """
    with _alone():
        return diversion.remove()


def left_over() -> int:
    """How many rules a killed process has left; 0 where transparent mode runs here."""
    try:
        with _alone():
            return diversion.rules()
    except ConfigurationError:
        return 0


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """A lock on the network namespace itself: it leaves nothing behind, and goes with the process."""
    descriptor = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                "transparent mode runs here already", remedy="stop it first; one process does for host and router"
            ) from None
        yield
    finally:
        os.close(descriptor)
