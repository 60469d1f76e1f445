"""What only the kernel has heard on the connections over a link: ACKs, and data that nobody has read yet (TCP_INFO)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Sequence
from weakref import WeakKeyDictionary

from msocks.client.leg_check import LegChecks
from msocks.client.link_path import LinkPath
from msocks.session.path_health import PathHealth
from msocks.session.path_state import PathState
from msocks.transport.kernel import TcpInfo, tcp_info
from msocks.transport.reactor import Reactor

# What is heard within this time needs no look.
_FRESH_S = 0.01
# Data that waits longer than this for its ACK says more about its leg than about the traffic of the path.
_OUTSTANDING_S = 3.0
# How many connections are looked at otherwise: in 50 ms each of a thousand would take a third of a processor.
_SAMPLE = 32
# How often to look for legs whose bytes have stopped coming, and for what TCP takes for the round-trip time.
_LOOK_S = 1.0
# Measurements that are older say nothing of the queues that are there now.
_NEWS_MS = 500


class LegSigns:
    """Tells the health of paths of it, and has legs checked that seem dead on a living path."""

    def __init__(self, reactor: Reactor) -> None:
        self.checks = LegChecks(reactor)
        # Behind which byte data waits for its ACK, and since when.
        self._waits: WeakKeyDictionary[socket.socket, tuple[int, float]] = WeakKeyDictionary()
        self._sent: WeakKeyDictionary[socket.socket, tuple[int, int]] = WeakKeyDictionary()  # when looked at last

    def listen(
        self,
        path: LinkPath,
        health: PathHealth,
        legs: Sequence[socket.socket],
        control: socket.socket | None,
        now: float,
    ) -> None:
        """Look at the legs of a link and at its control channel's connection, where that stands.

        At all of them once a second, and before the link is called silent; else at some, until one has been heard just
        now.
        """
        health.on_legs(bool(legs))
        look = now >= path.looked_at + _LOOK_S
        if look:
            path.looked_at = now
            self.checks.check_paused(legs)
        if not look and now - health.heard_at < _FRESH_S:
            return
        connections = legs if control is None else [control, *legs]
        for sock in connections if look or health.may_fall_silent() else path.sample(connections, _SAMPLE):
            try:
                info = tcp_info(sock)
            except OSError:
                continue
            path.split.on_tcp(info.rtt_least_ms / 1000)
            # A middlebox ACKs whether the proxy is there or not; bytes come from the proxy in any case.
            heard_ms = info.last_data_received_ms
            if not path.split.is_split:
                heard_ms = min(heard_ms, info.last_ack_received_ms)
            heard_at = now - heard_ms / 1000
            health.on_heard(heard_at)
            if sock is not control:
                self._note_traffic(health, sock, info, now)
                if look:
                    self._note_loss(health, sock, info)
            if not look and now - heard_at < _FRESH_S:
                path.heard_on = sock
                return

    def note_whole(self, path: LinkPath, rtt_s: float, legs: Iterable[socket.socket]) -> None:
        """The proxy's program has answered a probe over the path; see how long TCP takes at this moment."""
        busy_s = 0.0
        if path.split.is_slow(rtt_s):
            for leg in legs:
                with contextlib.suppress(OSError):
                    busy_s = max(busy_s, _takes_now_s(tcp_info(leg)))
        path.split.on_whole(rtt_s, busy_s)

    def note_ping(self, path: LinkPath, health: PathHealth, rtt_s: float, legs: Iterable[socket.socket]) -> None:
        """It has answered one on the control channel, which is all there is where UDP is blocked.

        A ping waits for both programs and for what TCP sends again, nobody says how long: else a slow one says nothing.
        """
        if health.udp_blocked or not path.split.is_slow(rtt_s):
            self.note_whole(path, rtt_s, legs)

    def _note_loss(self, health: PathHealth, leg: socket.socket, info: TcpInfo) -> None:
        sent, again = info.sent_bytes, info.sent_again_bytes
        sent_before, again_before = self._sent.get(leg, (sent, again))
        self._sent[leg] = sent, again
        if health.state is PathState.ALIVE:
            health.loss.on_sent(sent - sent_before, again - again_before)

    def _note_traffic(self, health: PathHealth, leg: socket.socket, info: TcpInfo, now: float) -> None:
        # Of what is sent, its sender tells. The ACK of a keep-alive is no traffic: it would be asked about for minutes.
        health.on_traffic(now - info.last_data_received_ms / 1000)
        if not info.unacked_segments:
            self._waits.pop(leg, None)
            return
        acknowledged, since = self._waits.get(leg, (-1, now))
        if acknowledged != info.acknowledged_bytes:
            self._waits[leg], since = (info.acknowledged_bytes, now), now
        if now - since < _OUTSTANDING_S:
            health.on_traffic(now)
        elif health.heard_at > now - _OUTSTANDING_S / 2:
            self.checks.check(leg)  # its link lives, it does not seem to


def _takes_now_s(info: TcpInfo) -> float:
    """What TCP takes for the round-trip time, as sender or as receiver, if it has had news of it; 0 otherwise."""
    as_sender = info.rtt_ms if info.last_ack_received_ms < _NEWS_MS else 0.0
    as_receiver = info.rtt_receiver_ms if info.last_data_received_ms < _NEWS_MS else 0.0
    return max(as_sender, as_receiver) / 1000
