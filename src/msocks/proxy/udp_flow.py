"""A UDP flow of a mobile node at the proxy: one socket toward the servers, whatever path the node's datagrams take."""

from __future__ import annotations

import itertools

from msocks.protocol.replay import Freshness, ReplayWindow
from msocks.protocol.udp_flow import Attach, Detach, Down, FlowStatus, State, Up, encode_udp_flow
from msocks.proxy.associations import Association
from msocks.proxy.datagram_way import DatagramWay
from msocks.proxy.udp_host import UdpHost, UdpView
from msocks.proxy.udp_relay import UdpRelay
from msocks.values.endpoint import Endpoint


class UdpFlow:
    """See the module. What it is given is authentic; what was there before, or is too old, it finds out itself."""

    def __init__(self, host: UdpHost, association: Association, number: int) -> None:
        """Begin one. Raises OSError where there are no sockets to be had."""
        self.association = association
        self.number = number
        self._host = host
        self._opened_at = host.reactor.loop.time()
        self._seen = ReplayWindow()
        self._newest = (0, -1)  # generation and number of the datagram that told the way
        self._way: DatagramWay | None = None
        self._down_numbers = itertools.count()
        self._replayed = self._not_sent = 0
        self._paths = 0
        self._closed = False
        self._relay = UdpRelay(host.reactor, host.destinations, self._on_downward)

    @property
    def user(self) -> str:
        """Whose it is."""
        return self.association.user

    def hear(self, message: Attach | Up | Detach, way: DatagramWay) -> None:
        """An authentic datagram of the client has come by `way`."""
        if self._seen.commit(message.number) is not Freshness.FRESH:
            self._replayed += 1
            return
        self._host.heard(self)
        if (message.generation, message.number) > self._newest:
            self._paths += message.generation > self._newest[0]
            self._newest = message.generation, message.number
            self._way = way
        match message:
            case Up(destination=destination, payload=payload):
                self._relay.send(destination, payload)
            case Attach():
                answer(self.association, message, way, FlowStatus.OPEN)
            case Detach():
                self.close()
                answer(self.association, message, way, FlowStatus.ENDED)

    def view(self) -> UdpView:
        relay = self._relay
        return UdpView(
            user=self.user,
            mobile=True,
            client=None if self._way is None else self._way.source,
            port=relay.port,
            sent=relay.sent,
            received=relay.received,
            bytes_up=relay.bytes_up,
            bytes_down=relay.bytes_down,
            paths=self._paths,
            opened_at=self._opened_at,
            dropped={"replayed": self._replayed, "to_client": self._not_sent, **relay.dropped()},
        )

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._relay.close()
            self._host.ended(self)

    def _on_downward(self, source: Endpoint, payload: bytes) -> None:
        assert self._way is not None  # a server answers only to what came by one
        generation, number = self._newest[0], next(self._down_numbers)
        down = Down(self.association.id, self.number, generation, number, source, payload)
        if not self._way.send(encode_udp_flow(down, self.association.udp_key_down)):
            self._not_sent += 1


def answer(association: Association, message: Attach | Up | Detach, way: DatagramWay, status: FlowStatus) -> None:
    """Tell the client how a flow stands, by the way that its datagram came."""
    state = State(association.id, message.flow, message.generation, message.number, status)
    way.send(encode_udp_flow(state, association.udp_key_down))
