"""What each link can do now: the kernel's word on it, and whether anything comes back over it.

`msocks.session.path_health` decides; this module sends the probes, hears what arrives, and keeps the time. What arrives
on the legs themselves is read from TCP_INFO where a question is open, so that an upload, of which nothing but ACKs
comes back, counts as well.
"""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from msocks.client.association import Association
from msocks.client.control_path import ControlPath
from msocks.client.leg_signs import LegSigns
from msocks.client.link_path import LinkPath
from msocks.client.path_probe import ProbeKeys, ProbeSocket
from msocks.client.sleep_watch import SleepWatch
from msocks.errors import LinkCaptive
from msocks.link_monitor.link_kind import link_kind
from msocks.link_monitor.monitor import LinkMonitor, Subscriber
from msocks.link_monitor.table import LinkChange, changes
from msocks.protocol.probe import Position, ProbeAnswer
from msocks.session.path_health import REFUSED_S, PathHealth
from msocks.session.path_state import Means, PathState, Tariff
from msocks.transport.dial import Dialer
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Endpoint
from msocks.values.ids import SessionId
from msocks.values.link import Link, LinkKind, LinkState

_WAKE_S = 0.25
_LEAST_S = 0.001
# No NAT forgets a UDP mapping within these times because of idleness: RFC 4787 asks for 2 min, many take 30 s.
_IN_USE_S = 5.0
_KEPT_S = 25.0


class PathWatch:
    """See the module. It can be asked after `start`, and tells of every change from then on."""

    def __init__(
        self,
        reactor: Reactor,
        monitor: LinkMonitor,
        dialer: Dialer,
        association: Association,
        *,
        legs: Callable[[str], Iterable[socket.socket]],
        wanted: Callable[[], bool],
        rebound: Callable[[str], None] | None = None,
        on_position: Callable[[Position], None] | None = None,
    ) -> None:
        """
        Args:
            reactor: Watches the probes' sockets.
            monitor: The kernel's view of the links; started before this.
            dialer: Knows the proxy's addresses.
            association: Authenticates probes; none are sent before it stands.
            legs: The established legs on a link, by its name.
            wanted: Whether any session lives: a silent link is then asked more often.
            rebound: Called with a link's name when its NAT has lost a mapping that was in use: its connections are in
                all likelihood dead as well, although nothing tells. They are checked in any case, which takes longer.
            on_position: Called with each answer to `ask_position`.
        """
        self.control: ControlPath | None = None
        """Set by the control channels: the means to ask where UDP is blocked."""
        self._reactor = reactor
        self._monitor = monitor
        self._dialer = dialer
        self._association = association
        self._keys = ProbeKeys(association)
        self._legs = legs
        self.wanted = wanted
        self._rebound = rebound
        self._on_position = on_position or (lambda _position: None)
        self._signs = LegSigns(reactor)
        self._is_metered: Callable[[str], bool] = lambda name: link_kind(name) is LinkKind.CELLULAR
        self._paths: dict[str, LinkPath] = {}
        self._picture: dict[str, Link] = {}
        self._proven: dict[str, tuple[bool, bool]] = {}
        self._subscribers: list[Subscriber] = []
        self._unsubscribe: Callable[[], None] | None = None
        self._sleep = SleepWatch(reactor, self._on_wake)

    def start(self) -> None:
        """Begin to watch the links of the monitor."""
        self._dialer.addresses.on_change(self._on_addresses)
        self._dialer.resolve_soon()
        self._on_addresses()
        self._unsubscribe = self._monitor.subscribe(self._on_monitor)
        for link in self._monitor.links().values():
            self._follow(link)
        self._publish()

    def close(self) -> None:
        """Watch no more; what was known stays readable."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        self._sleep.close()
        for path in self._paths.values():
            path.close()
        self._paths.clear()
        self._subscribers.clear()

    # -- for the node -----------------------------------------------------------------------------------------------

    def links(self) -> Mapping[str, Link]:
        """The links by name, in the monitor's order, each with what it can do."""
        return MappingProxyType(self._picture)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with what has changed in `links`; with nothing where only `path` shows it, or their order.

        Returns what ends that.
        """
        self._subscribers.append(subscriber)

        def unsubscribe() -> None:
            with contextlib.suppress(ValueError):
                self._subscribers.remove(subscriber)

        return unsubscribe

    def state(self, name: str) -> LinkState:
        """What a link can do; DOWN where there is none of that name."""
        path = self._paths.get(name)
        return LinkState.DOWN if path is None else path.state

    def path(self, name: str) -> LinkPath | None:
        """All that is known of the way to the proxy over a link, to look at; None where there is no such link."""
        return self._paths.get(name)

    def rtt_ms(self, name: str) -> float | None:
        """Smoothed round-trip time to the proxy in milliseconds; None where nothing was measured."""
        path = self._paths.get(name)
        if path is None or path.health is None or path.health.rtt.smoothed_s is None:
            return None
        return path.health.rtt.smoothed_s * 1000

    def public_endpoint(self, name: str) -> Endpoint | None:
        """Where the proxy sees this host's probes come from; None where none was answered."""
        path = self._paths.get(name)
        return None if path is None else path.public

    def sent(self, name: str) -> None:
        """Bytes were written to a leg on that link. Cheap; a link that was idle is asked again from now on."""
        path = self._paths.get(name)
        if path is not None and path.health is not None:
            now = time.monotonic()
            path.health.on_traffic(now)
            if path.due - now > _WAKE_S:
                self._arm(path)

    def ask_position(self, name: str, session: SessionId) -> bool:
        """Ask over a link how far a session's upstream has come; whether an answer can be expected."""
        path = self._paths.get(name)
        if path is None or path.health is None or path.health.udp_blocked or self._association.keys is None:
            return False
        candidates = self._dialer.candidates(path.link)
        with contextlib.suppress(OSError):
            if candidates:
                number = self._association.next_probe_number()
                return self._probe_socket(path, candidates[0]).ask_position(number, session)
        return False

    # -- for the control channels -----------------------------------------------------------------------------------

    def on_keys(self) -> None:
        """The association stands: from now on probes can be made."""
        for path in self._paths.values():
            self._tick(path)

    def answered(self, name: str, number: int, rtt_s: float) -> None:
        """The answer to the ping of that number has come, so long after it was asked."""
        path = self._paths.get(name)
        if path is not None and path.health is not None:
            path.health.on_answer(time.monotonic(), number)
            self._signs.note_ping(path, path.health, rtt_s, self._legs(name))
            self._after_news(path)

    def control_heard(self, name: str) -> None:
        """Something of the proxy has come over a link other than on a leg or in answer to a ping."""
        path = self._paths.get(name)
        if path is not None and path.health is not None:
            path.health.on_heard(time.monotonic())
            self._after_news(path)

    def refused(self, name: str) -> None:
        """The proxy's host says, over that link, that nobody listens there; or so says something on the way."""
        path, now = self._paths.get(name), time.monotonic()
        if path is None or path.health is None:
            return
        if now - path.refused_at > REFUSED_S:
            path.refused_since = now
        path.refused_at = now
        if not self.heard_elsewhere(name, path.refused_since):
            path.health.on_refused(now)

    def heard_elsewhere(self, name: str, since: float) -> bool:
        """Whether the proxy has been heard since then (time.monotonic()), over another link and not over this one."""
        heard = {other for other, path in self._paths.items() if path.health and path.health.heard_at > since}
        return bool(heard) and name not in heard

    def set_captive(self, name: str, captive: LinkCaptive | None) -> None:
        """How something else than the proxy answers on that link; None: it is the proxy after all."""
        path = self._paths.get(name)
        if path is not None and path.health is not None:
            path.captive = captive
            self._after_news(path)

    # -- links ------------------------------------------------------------------------------------------------------

    def _on_addresses(self) -> None:
        known = (endpoint.address for endpoint in self._dialer.addresses.known)
        self._monitor.set_targets(address for address in known if address is not None)

    def _on_monitor(self, changed: Sequence[LinkChange]) -> None:
        for change in changed:
            if change.after is not None:
                self._follow(change.after)
            elif (path := self._paths.pop(change.name, None)) is not None:
                path.close()
        self._publish()

    def _follow(self, link: Link) -> None:
        path = self._paths.setdefault(link.name, LinkPath(link))
        before, path.link = path.link, link
        if link.state is LinkState.DOWN:
            path.close()
        elif path.health is None or before.index != link.index or path.source_is_gone:
            self._dialer.resolve_soon()
            self._begin(path)

    def _begin(self, path: LinkPath) -> None:
        path.close()
        path.health = PathHealth(time.monotonic(), self._tariff(path))
        self._arm(path)

    def set_metered(self, is_metered: Callable[[str], bool]) -> None:
        """Whether a link costs money, by name."""
        self._is_metered = is_metered
        for path in self._paths.values():
            if path.health is not None:
                path.health.tariff = self._tariff(path)

    def is_metered(self, name: str) -> bool:
        """Whether the link of that name costs money, as far as anybody has said."""
        path = self._paths.get(name)
        return path is not None and self._tariff(path) is Tariff.METERED

    def _tariff(self, path: LinkPath) -> Tariff:
        return Tariff.METERED if path.link.metered or self._is_metered(path.link.name) else Tariff.FREE

    def _publish(self) -> None:
        before = self._picture
        self._picture = {
            name: replace(link, state=self._paths[name].state)
            for name, link in self._monitor.links().items()
            if name in self._paths
        }
        for path in self._paths.values():
            path.shown = path.picture
            if path.health is not None and path.health.state is PathState.SILENT:
                self._arm(path)  # how urgent it is depends on the others
        changed = changes(before, self._picture)
        proven = {name: path.picture[1:] for name, path in self._paths.items()}
        was_proven, self._proven = self._proven, proven
        if changed or proven != was_proven or list(before) != list(self._picture):
            for subscriber in list(self._subscribers):
                subscriber(changed)

    # -- one path ---------------------------------------------------------------------------------------------------

    def _arm(self, path: LinkPath) -> None:
        """Set the timer for the next decision. There is none before probes can be made."""
        if path.timer is not None:
            path.timer.cancel()
            path.timer = None
        health = path.health
        if health is None or self._association.keys is None:
            path.due = math.inf
            return
        health.wanted = self.wanted()
        health.alone = not any(other is not path and other.state is LinkState.UP for other in self._paths.values())
        now = time.monotonic()
        path.due = max(health.next_event(now), now + _LEAST_S)
        if path.due < math.inf:
            path.timer = self._reactor.loop.call_later(path.due - now, self._tick, path)

    def _tick(self, path: LinkPath) -> None:
        self._sleep.look(time.monotonic() - path.due)
        health = path.health
        if health is None:
            return
        for probe in list(path.probes.values()):
            probe.receive()
        now = time.monotonic()
        control = None if self.control is None else self.control.socket_of(path.link.name)
        self._signs.listen(path, health, list(self._legs(path.link.name)), control, now)
        asked = health.advance(now)
        now = time.monotonic()
        sent = Means.NOTHING
        if Means.UDP in asked and self._send_probe(path, health, now):
            sent |= Means.UDP
        if Means.CONTROL in asked and self._send_ping(path, health, now):
            sent |= Means.CONTROL
        if asked and not sent:
            health.on_mute(now)
        self._recheck(path, health.is_suspicious(now))
        self._after_news(path)
        self._arm(path)

    def _after_news(self, path: LinkPath) -> None:
        if path.picture != path.shown:
            if path.shown[0] is LinkState.SILENT:
                self._check_legs(path)
            self._publish()

    def _send_probe(self, path: LinkPath, health: PathHealth, now: float) -> bool:
        endpoint = path.next_endpoint(self._dialer.candidates(path.link))
        number = self._association.next_probe_number()
        try:
            probe = None if endpoint is None else self._probe_socket(path, endpoint)
        except OSError:
            return False  # netlink will tell, or has told and is not read yet
        if probe is None or not probe.send(number, int(now * 1e6)):
            return False
        health.on_probe_sent(now, number, Means.UDP)
        return True

    def _probe_socket(self, path: LinkPath, endpoint: Endpoint) -> ProbeSocket:
        if endpoint not in path.probes:
            on_answer = partial(self._on_probe_answer, path, endpoint)
            on_refused = partial(self.refused, path.link.name)
            link, keys = path.link, self._keys
            path.probes[endpoint] = ProbeSocket(
                self._reactor, self._association, keys, link, endpoint, on_answer, self._on_position, on_refused
            )
        return path.probes[endpoint]

    def _send_ping(self, path: LinkPath, health: PathHealth, now: float) -> bool:
        number = self._association.next_probe_number()
        if self.control is None or not self.control.ping(path.link.name, number):
            return False
        health.on_probe_sent(now, number, Means.CONTROL)
        return True

    def _on_probe_answer(self, path: LinkPath, endpoint: Endpoint, answer: ProbeAnswer, received_at: float) -> None:
        if path.health is None:
            return
        captive_and_mute = path.captive is not None and path.health.state is not PathState.ALIVE
        path.health.on_answer(received_at, answer.sequence)
        self._signs.note_whole(path, received_at - answer.time / 1e6, self._legs(path.link.name))
        if path.split.is_doubtful:
            path.health.on_traffic(received_at)  # ask soon
        if captive_and_mute and path.health.state is PathState.ALIVE and self.control is not None:
            self.control.retry(path.link.name)
        if path.answering != endpoint:
            path.answering, path.public = endpoint, None  # each address of the proxy sees its own mapping
        self._note_public(path, answer.observed, received_at)
        self._after_news(path)

    def _note_public(self, path: LinkPath, observed: Endpoint, now: float) -> None:
        """A NAT that shows another address has forgotten the old one, and perhaps all connections with it."""
        known, path.public = path.public, observed
        age_s, path.public_at = now - path.public_at, now
        if known in (None, observed):
            return
        if age_s < _KEPT_S:
            self._check_legs(path)
        if age_s < _IN_USE_S and self._rebound is not None:
            self._rebound(path.link.name)

    def _check_legs(self, path: LinkPath) -> None:
        for leg in self._legs(path.link.name):
            self._signs.checks.check(leg)

    def _recheck(self, path: LinkPath, suspicious: bool) -> None:
        if suspicious and not path.rechecked:
            self._reactor.loop.call_soon(self._monitor.recheck, path.link.name)
        path.rechecked = suspicious

    def _on_wake(self) -> None:
        """After a sleep nothing of what was known holds: networks, NAT mappings, and the proxy may have changed."""
        for path in self._paths.values():
            if path.health is not None:
                self._begin(path)
                self._check_legs(path)
        self._publish()
        if self.control is not None:
            self.control.verify_all()
