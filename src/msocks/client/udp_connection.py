"""A UDP flow at the mobile node: carries out what the state machine of sessions (`msocks.session.mobile`) decides.

The machine is that of TCP sessions, so that links, policy, moves and failures mean the same for both. A leg is a path
here, CONNECT and RECONNECT are ATTACH, and nothing has to be joined.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections import deque

from msocks.client.network import DatagramListener, UdpNetwork
from msocks.client.udp_path import UdpPath
from msocks.errors import EndReason, LinkUnavailable, MsocksError, SessionEnded
from msocks.protocol.leg import LegReply, LegStatus
from msocks.protocol.replay import Freshness, ReplayWindow
from msocks.protocol.udp_flow import Attach, Detach, Down, FlowStatus, State, Up, encode_udp_flow, udp_flow_key
from msocks.session import mobile_effects as mobile
from msocks.session.mobile import HOLD_DOWN_S, MobileSession
from msocks.session.mobile_effects import SessionState
from msocks.values.endpoint import Endpoint
from msocks.values.ids import SessionId

HELD_DATAGRAMS = 64
HELD_S = 2.0
"""What a program sends while no path stands is kept for so long."""
LINGER_S = 3.0
"""What is under way on a path that was left still arrives."""
_FIRST_REPEAT_S = 0.15


class UdpConnection:
    """See the module. All calls on the event loop's thread.

    Attributes:
        session: Names the flow to users; the proxy knows it by a number.
        reopened: How often the proxy had lost the flow, so that servers saw another port afterwards.
    """

    def __init__(self, network: UdpNetwork, listener: DatagramListener) -> None:
        self.session = SessionId.generate()
        self.reopened = 0
        self._network = network
        self._listener = listener
        self._machine = MobileSession("udp")
        self._flow = 0
        self._keys_of = self._key_up = self._key_down = b""
        self._numbers = itertools.count()
        self._seen = ReplayWindow()
        self._attempts: dict[int, UdpPath] = {}
        self._live: UdpPath | None = None
        self._lingering: dict[UdpPath, asyncio.TimerHandle] = {}
        self._held: deque[tuple[float, Endpoint, bytes]] = deque()
        self._lost = 0
        self._tries = 0  # since a path stood
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.TimerHandle | None = None
        self._moves: dict[str, list[asyncio.Future[None]]] = {}

    # -- what it is -------------------------------------------------------------------------------------------------

    @property
    def state(self) -> SessionState:
        """Connecting, live, parked or ended."""
        return self._machine.state

    @property
    def link(self) -> str | None:
        """The link that carries the flow, or that is being tried."""
        return self._machine.link

    @property
    def carried_by(self) -> str | None:
        """The link that carries the flow or, while none does, that carried it last."""
        return self._machine.carried_by

    @property
    def generation(self) -> int:
        """The generation of the live path."""
        return self._machine.generation

    @property
    def moves(self) -> int:
        """How many times the flow got another path."""
        return self._machine.moves

    @property
    def leg(self) -> socket.socket | None:
        """The live path's socket, to ask the kernel about."""
        return None if self._live is None else self._live.sock

    @property
    def dropped(self) -> int:
        """Datagrams to servers that did not leave this host: too long, no path, no room."""
        paths = [*self._attempts.values(), *self._lingering, *([] if self._live is None else [self._live])]
        return self._lost + sum(path.dropped for path in paths)

    # -- what can be asked of it ------------------------------------------------------------------------------------

    def send(self, destination: Endpoint, payload: bytes) -> None:
        """Send a datagram; while no path stands it is kept for a moment."""
        if self._live is not None and self._network.authority is not None:
            self._send(self._live, destination, payload)
            return
        self._held.append((self._now(), destination, payload))
        if len(self._held) > HELD_DATAGRAMS:
            self._held.popleft()
            self._lost += 1

    async def move(self, link: str) -> None:
        """Carry the flow over `link`; return when it runs there.

        Raises LinkUnavailable (the flow goes on where it was), SessionEnded.
        """
        if self.state is SessionState.ENDED:
            raise SessionEnded(EndReason.UNKNOWN)
        done: asyncio.Future[None] = self._network.reactor.loop.create_future()
        self._moves.setdefault(link, []).append(done)
        self._apply(self._machine.move(self._now(), link))
        await done

    def prefer(self, link: str) -> None:
        """Use `link` above all others; before the first path."""
        self._machine.prefer(link)

    def release(self) -> None:
        """Undo `prefer` and the preference that `move` has left."""
        self._machine.release()

    def give_up(self, error: MsocksError) -> None:
        """End the flow with `error` if it never stood."""
        self._apply(self._machine.give_up(error))

    def abort(self) -> None:
        """The program is done: the proxy is told."""
        self._apply(self._machine.ended(EndReason.CLOSED))

    # -- what happens to it -----------------------------------------------------------------------------------------

    def links_changed(self, links: tuple[str, ...], rtt_s: dict[str, float], hold_down_s: float = HOLD_DOWN_S) -> None:
        """The links that can be used, in order of preference; see `MobileSession.links_changed`."""
        live = self._live
        if live is not None and live.link in links and live.source not in self._network.addresses(live.link):
            self._apply(self._machine.leg_lost(self._now(), live.generation))
        self._apply(self._machine.links_changed(self._now(), links, rtt_s, hold_down_s))

    def keys_changed(self, key_up: bytes) -> None:
        """The proxy has told keys. If they are others, it knows nothing of the flow any more."""
        if self._keys_of and self._keys_of != key_up:
            self._reopen()

    def rebound(self, link: str) -> None:
        """A NAT on the way has forgotten its mappings: let the proxy see the new one now."""
        if self._live is not None and self._live.link == link:
            self._ask(self._live)
            self._watch(self._live)

    # -- carrying out -----------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return self._network.reactor.loop.time()

    def _apply(self, effects: list[mobile.Effect]) -> None:
        for effect in effects:
            match effect:
                case mobile.Attempt():
                    self._begin(effect)
                case mobile.Abandon(generation):
                    path = self._attempts.pop(generation, None)
                    if path is not None:
                        self._linger(path)  # the proxy may have taken it for the newest
                case mobile.Carried():
                    self._carried(effect)
                case mobile.Parked():
                    self._leave()
                    self._listener.on_parked()
                case mobile.MoveFailed(link, error):
                    for waiting in self._moves.pop(link, []):
                        if not waiting.done():
                            waiting.set_exception(error)
                case mobile.Ended(error):
                    self._end(error)
        if self._timer is not None:
            self._timer.cancel()
        deadline = self._machine.deadline
        self._timer = None if deadline is None else self._network.reactor.loop.call_at(deadline, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._apply(self._machine.on_time(self._now()))

    def _begin(self, effect: mobile.Attempt) -> None:
        loop = self._network.reactor.loop
        try:
            if not self._take_keys():
                raise LinkUnavailable(effect.link, "the association with the proxy is being renewed")
            sock = self._network.open_udp(effect.link, self._tries)
            self._tries += 1
        except (OSError, MsocksError) as error:
            loop.call_soon(self._failed, effect.generation, error)
            return
        path = UdpPath(
            self._network.reactor, sock, effect.generation, effect.link, self._key_down, self._hear, self._on_failure
        )
        self._attempts[effect.generation] = path
        if effect.reconnect:
            # From now on the proxy may send by this path, whether its answer arrives or not.
            self._machine.request_sent(self._now(), effect.generation)
        self._repeat(path, _FIRST_REPEAT_S)

    def _repeat(self, path: UdpPath, pause_s: float) -> None:
        """Ask until there is an answer, or the machine has lost patience."""
        if self._attempts.get(path.generation) is path:
            self._ask(path)
            self._network.reactor.loop.call_later(pause_s, self._repeat, path, 2 * pause_s)

    def _ask(self, path: UdpPath) -> None:
        authority = self._network.authority
        if authority is not None:
            number = next(self._numbers)
            attach = Attach(authority.id, self._flow, path.generation, number)
            path.ask(number, encode_udp_flow(attach, self._key_up))
            self._network.sent(path.link)

    def _send(self, path: UdpPath, destination: Endpoint, payload: bytes) -> None:
        authority = self._network.authority
        assert authority is not None
        up = Up(authority.id, self._flow, path.generation, next(self._numbers), destination, payload)
        path.send(encode_udp_flow(up, self._key_up))
        self._network.sent(path.link)

    def _hear(self, path: UdpPath, message: State | Down) -> None:
        authority = self._network.authority
        if authority is None or message.association != authority.id or message.flow != self._flow:
            return
        match message:
            case Down(number=number, source=source, payload=payload):
                if self._seen.commit(number) is Freshness.FRESH:
                    self._listener.on_datagram(source, payload)
            case State(status=FlowStatus.OPEN):
                if self._attempts.get(path.generation) is path:
                    self._replied(path, LegStatus.OK)
            case State(status=FlowStatus.LIMIT):
                self._replied(path, LegStatus.LIMIT)
            case State():
                self._reopen()

    def _replied(self, path: UdpPath, status: LegStatus) -> None:
        self._apply(self._machine.replied(self._now(), path.generation, LegReply(status=status)))

    def _failed(self, generation: int, error: Exception) -> None:
        known = error if isinstance(error, MsocksError) else LinkUnavailable(self.link or "", str(error))
        self._apply(self._machine.attempt_failed(self._now(), generation, known))

    def _on_failure(self, path: UdpPath, error: OSError) -> None:
        """The kernel cannot send by a path; it may say so in the middle of anything."""
        loop = self._network.reactor.loop
        if path is self._live:
            loop.call_soon(self._lose, path.generation)
        elif self._attempts.get(path.generation) is path:
            loop.call_soon(self._failed, path.generation, error)

    def _lose(self, generation: int) -> None:
        self._apply(self._machine.leg_lost(self._now(), generation))

    def _take_keys(self) -> bool:
        """Have keys and a number; the first time, and whenever the proxy has lost the flow. False without keys."""
        authority = self._network.authority
        if authority is None:
            return False
        if self._keys_of != authority.key_up:
            self._keys_of = authority.key_up
            self._key_up, self._key_down = udp_flow_key(authority.key_up), udp_flow_key(authority.key_down)
            self._flow = 0
        if not self._flow:
            self._flow = authority.next_udp_flow()
            self._numbers = itertools.count()
            self._seen = ReplayWindow()
        return True

    def _reopen(self) -> None:
        """The proxy does not know the flow: open another, by the next path."""
        if self._machine.state in (SessionState.LIVE, SessionState.PARKED):
            self.reopened += 1
        self._flow = 0
        lost = LinkUnavailable(self.link or "", "the proxy has lost the UDP flow")
        attempting = self._machine.attempting
        if attempting is not None:
            self._apply(self._machine.attempt_failed(self._now(), attempting, lost))
        if self._live is not None:
            self._lose(self._live.generation)

    def _carried(self, carried: mobile.Carried) -> None:
        path = self._attempts.pop(carried.generation, None)
        if path is not None:
            self._leave()
            self._live = path
            self._tries = 0
            self._watch(path)
            now = self._now()
            held, self._held = self._held, deque()
            for since, destination, payload in held:
                if now - since <= HELD_S and self._live is path:
                    self._send(path, destination, payload)
                else:
                    self._lost += 1
        for waiting in self._moves.pop(carried.link, []):
            if not waiting.done():
                waiting.set_result(None)
        if carried.from_link != carried.link or carried.cause is not mobile.MoveCause.REQUESTED:
            self._listener.on_carried(carried)

    def _watch(self, path: UdpPath) -> None:
        """Keep the live path's NAT mappings, and notice when it is dead."""
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        if path is not self._live:
            return
        loop = self._network.reactor.loop
        if path.is_dead:
            self._lose(path.generation)
            return
        if path.next_question() <= loop.time():
            self._ask(path)
        self._asking = loop.call_at(path.next_question(), self._watch, path)

    def _leave(self) -> None:
        """The live path is that no more."""
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        if self._live is not None:
            self._linger(self._live)
            self._live = None

    def _linger(self, path: UdpPath) -> None:
        self._lingering[path] = self._network.reactor.loop.call_later(LINGER_S, self._close, path)

    def _close(self, path: UdpPath) -> None:
        self._lingering.pop(path).cancel()
        self._lost += path.dropped
        path.close()

    def _end(self, error: MsocksError | None) -> None:
        authority = self._network.authority
        self._leave()
        for path in self._attempts.values():
            self._linger(path)
        self._attempts.clear()
        for path in list(self._lingering):
            if authority is not None and self._flow and self._keys_of == authority.key_up:
                detach = Detach(authority.id, self._flow, path.generation, next(self._numbers))
                path.send(encode_udp_flow(detach, self._key_up))  # if it is lost, the proxy's idle limit ends the flow
            self._close(path)
        for waitings in self._moves.values():
            for waiting in waitings:
                if not waiting.done():
                    waiting.set_exception(error or SessionEnded(EndReason.CLOSED))
        self._moves.clear()
        self._network.forget_udp(self)
        self._listener.on_ended(error)
