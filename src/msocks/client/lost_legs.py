"""Legs that are gone although no socket says so, and what the proxy is told of lost legs and lost last words."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from msocks.client.control_channel import ControlChannels
from msocks.client.ended_sessions import EndedSessions
from msocks.client.session_closer import SessionCloser
from msocks.protocol.control import MAX_LISTED_SESSIONS, Park, ParkedLeg
from msocks.values.endpoint import Endpoint
from msocks.values.link import Link

if TYPE_CHECKING:
    from msocks.client.node import MobileNode


_TELL_AFTER_S = 0.002  # a RECONNECT over a spare leg goes first: it says the same, and more


class LostLegs:
    """See the module.

    Attributes:
        ended: Sessions whose last words the proxy is asked about when the link that carried them fails.
    """

    def __init__(self, node: MobileNode, channels: ControlChannels, closer: SessionCloser) -> None:
        self.ended = EndedSessions(node.reactor.loop.time)
        self._node = node
        self._channels = channels
        self._closer = closer
        self._gone: list[ParkedLeg] = []  # of which the proxy is to be told in a moment

    def park(self, leg: ParkedLeg) -> None:
        """Tell the proxy that a leg is gone, over whatever link still brings it; legs of one cause go together."""
        if not self._gone:
            self._node.reactor.loop.call_later(_TELL_AFTER_S, self._tell)
        self._gone.append(leg)

    def _tell(self) -> None:
        gone, self._gone = self._gone, []
        for first in range(0, len(gone), MAX_LISTED_SESSIONS):
            self._channels.send(Park(tuple(gone[first : first + MAX_LISTED_SESSIONS])))

    def on_rebound(self, link: str) -> None:
        """The link's NAT has forgotten its mappings: what the legs there send reaches nobody who knows them."""
        error = OSError(errno.ECONNRESET, f"the NAT of {link} has forgotten its mappings")
        for connection in list(self._node.connections.values()):
            if connection.leg is not None and connection.link == link:
                connection.leg_lost(connection.generation, error)
        for flow in list(self._node.udp.values()):
            flow.rebound(link)
        self.confirm_ends(link)

    def confirm_ends(self, link: str) -> None:
        """What was said last on the link may have been lost."""
        for ended in self.ended.take(link):
            self._closer.close(ended.session, ended.generation, ended.up_end)

    def check_addresses(self, link: Link) -> None:
        """A leg whose own address has left its link carries nothing more, although no error tells of it."""
        kept = {str(address) for address in link.addresses}
        for connection in list(self._node.connections.values()):
            leg = connection.leg
            if leg is None or connection.link != link.name:
                continue
            address = str(Endpoint.from_sockaddr(leg.getsockname()).host)
            if kept and address not in kept:
                connection.leg_lost(connection.generation, OSError(f"{address} is no longer an address of {link.name}"))
