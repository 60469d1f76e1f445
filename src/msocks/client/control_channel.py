"""A control channel over every link that can carry one.

Each link has its own, bound to it, so that news of one link travel over another, and each link shows whether the proxy
can be reached over it. A channel that breaks is opened anew, at once, then after growing pauses; a link that comes, or
comes back from silence, starts without a pause.

What is final says so and is tried again only rarely: a proxy that refuses the user (its operator may change that), and
a key that is not the pinned one (a captive portal goes away when the user has logged in; an impostor gets no more than
a TLS handshake).
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable, Mapping, Sequence

from msocks.client.association import Association
from msocks.client.control_connection import ping
from msocks.client.link_channel import ChannelContext, ChannelStatus, ControlOwner, LinkChannel
from msocks.client.path_watch import PathWatch
from msocks.link_monitor.table import LinkChange
from msocks.protocol.control import ControlMessage, Hello
from msocks.transport.dial import Dialer
from msocks.transport.reactor import Reactor
from msocks.transport.tls import client_context
from msocks.values.access_link import AccessLink
from msocks.values.link import Link, LinkState
from msocks.version import __version__

_USUAL_MTU = 1500


class ControlChannels:
    """See the module. Says in HELLO who this client is, and puts the answers into the association."""

    def __init__(
        self,
        reactor: Reactor,
        dialer: Dialer,
        watch: PathWatch,
        association: Association,
        access: AccessLink,
        *,
        owner: ControlOwner,
        agent_name: str,
    ) -> None:
        """
        Args:
            reactor: Watches the sockets.
            dialer: Opens the connections.
            watch: Knows the links; is told what is heard on them.
            association: What the channels are for.
            access: User, secret and pin.
            owner: Is told what the proxy says.
            agent_name: This program, for the operator's eyes.
        """
        self._watch = watch
        self._association = association
        self._access = access
        self._owner = owner
        self._agent_name = agent_name
        self._context = ChannelContext(
            reactor, dialer, watch, association, access, owner, client_context(), self._hello, self._on_away
        )
        self._channels: dict[str, LinkChannel] = {}
        self._unsubscribe: Callable[[], None] = lambda: None
        association.on_doubt(self.verify_all)
        watch.control = self

    def start(self) -> None:
        """Open a channel over each link that is there, and over every one that comes."""
        self._unsubscribe = self._watch.subscribe(self._on_links)
        for link in self._watch.links().values():
            self._follow(link)

    async def close(self) -> None:
        """Say goodbye on all channels, and end."""
        self._unsubscribe()
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.stop(goodbye=True)
        await asyncio.gather(*(channel.task for channel in channels), return_exceptions=True)

    def send(self, message: ControlMessage, *, avoid: str | None = None) -> str | None:
        """Say something to the proxy over the link that will bring it soonest.

        Args:
            message: What to say.
            avoid: A link not to use.

        Returns:
            The link; None where no channel is open.
        """
        for name in sorted(self._channels, key=self._promptness):
            if name != avoid and self._channels[name].send(message):
                return name
        return None

    def send_over(self, link: str, message: ControlMessage) -> None:
        """Say something over that link and no other; where no channel is open there, nothing is said."""
        channel = self._channels.get(link)
        if channel is not None:
            channel.send(message)

    def status(self) -> Mapping[str, ChannelStatus]:
        """The channels by link."""
        return {name: channel.status() for name, channel in self._channels.items()}

    # -- ControlPath ------------------------------------------------------------------------------------------------

    def ping(self, link: str, number: int) -> bool:
        """See `msocks.client.control_path.ControlPath`."""
        channel = self._channels.get(link)
        connection = None if channel is None else channel.connection
        return connection is not None and connection.send(ping(number))

    def socket_of(self, link: str) -> socket.socket | None:
        """See `msocks.client.control_path.ControlPath`."""
        channel = self._channels.get(link)
        connection = None if channel is None else channel.connection
        return connection.sock if connection is not None and connection.is_pinned else None

    def verify_all(self) -> None:
        """See `msocks.client.control_path.ControlPath`."""
        for channel in self._channels.values():
            channel.verify()

    def retry(self, link: str) -> None:
        """See `msocks.client.control_path.ControlPath`."""
        channel = self._channels.get(link)
        if channel is not None:
            channel.retry()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _promptness(self, name: str) -> tuple[bool, float]:
        rtt_ms = self._watch.rtt_ms(name)
        return self._watch.state(name) is not LinkState.UP, math.inf if rtt_ms is None else rtt_ms

    def _on_away(self) -> None:
        """A proxy that was restarted answers no probe of the association before it has said WELCOME.

        Where it speaks on another link, though, it is there, and who breaks connections on this one is in its place.
        """
        if not any(channel.is_open for channel in self._channels.values()):
            for name, channel in self._channels.items():
                if channel.is_away:
                    self._watch.refused(name)

    def _on_links(self, changed: Sequence[LinkChange]) -> None:
        for change in changed:
            if change.after is None or change.after.state is LinkState.DOWN:
                channel = self._channels.pop(change.name, None)
                if channel is not None:
                    channel.stop(goodbye=False)
                    self._owner.on_control_lost(change.name, None)
            else:
                self._follow(change.after)

    def _follow(self, link: Link) -> None:
        if link.state is LinkState.DOWN:
            return
        channel = self._channels.get(link.name)
        if channel is None:
            self._channels[link.name] = LinkChannel(self._context, link)
        else:
            channel.on_link(link)

    def _hello(self, link: str) -> Hello:
        """What a channel over `link` says first."""
        mtus = [each.mtu for each in self._watch.links().values() if each.state is not LinkState.DOWN]
        return Hello(
            user=self._access.user,
            secret=self._access.secret,
            association=self._association.id,
            smallest_mtu=min(mtus, default=_USUAL_MTU),
            link=link,
            agent_name=self._agent_name,
            agent_version=__version__,
        )
