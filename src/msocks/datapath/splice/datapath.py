"""The splice as a datapath: owns the loaded programs, and passes on what they tell."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct

import structlog

from msocks.datapath.interface import ConduitOwner, Survivor
from msocks.datapath.relay import RelayDatapath
from msocks.datapath.splice.adopted_conduit import AdoptedConduit
from msocks.datapath.splice.adoption import clear_handshakes, freed_just_now, survivor_of
from msocks.datapath.splice.caretaker import Caretaker
from msocks.datapath.splice.conduit import SpliceConduit
from msocks.datapath.splice.events import EventType, HeldPacket, PacketEvent
from msocks.datapath.splice.firewall import Firewall
from msocks.datapath.splice.held_bytes import HeldBytes
from msocks.datapath.splice.hooks import Hooks
from msocks.datapath.splice.host import SlotEvents
from msocks.datapath.splice.layout import MARK_OF_DAEMON, SERVER, LegState, Session, SessionState
from msocks.datapath.splice.libbpf import RingBuffer
from msocks.datapath.splice.loader import SpliceProgram
from msocks.datapath.splice.path_errors import tell_sender
from msocks.datapath.splice.ports import PortAllocator, PortRange
from msocks.datapath.splice.rate_limited_log import RateLimitedLog
from msocks.datapath.splice.raw_output import RawOutput
from msocks.datapath.splice.refusal import SpliceRefused
from msocks.datapath.splice.residual import ResidualClock
from msocks.datapath.splice.segments import RST
from msocks.datapath.splice.server_legs import ServerLegs
from msocks.datapath.splice.speech import ends, say
from msocks.datapath.splice.tables import Tables
from msocks.protocol.leg import DatapathKind, DatapathReason
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Address

_log = structlog.get_logger("msocks.datapath.splice")

_SO_MARK = 36
# An IPv4 leg's segments must fit when they leave over IPv6, whose header is longer.
_LISTENER_MSS = 1440
# While all places are taken, or events are lost all the time.
_BETWEEN_SWEEPS_S = 5.0
_EVENT = struct.Struct("=IIIIQ")  # struct event
_HELD_PACKET_BYTES = ctypes.sizeof(HeldPacket)
_PACKET_EVENT_BYTES = ctypes.sizeof(PacketEvent)


class SpliceDatapath:
    """Implements `msocks.datapath.interface.Datapath`, and what its conduits need (`SpliceHost`)."""

    def __init__(
        self,
        reactor: Reactor,
        program: SpliceProgram,
        hooks: Hooks,
        firewall: Firewall,
        *,
        ports: PortRange,
        half_closed_s: float,
    ) -> None:
        self.reactor = reactor
        self.tables = Tables(program, ports=ports, half_closed_s=half_closed_s)
        self.output = RawOutput(MARK_OF_DAEMON)
        self.residuals = ResidualClock(reactor.loop)
        self.held = HeldBytes()
        self._ports = PortAllocator(ports)
        self.shortage = RateLimitedLog("no_room")
        self._lost_ways = RateLimitedLog("no_next_hop")
        self.server_legs = ServerLegs(self.tables, self._ports, self.shortage, self._sweep)
        self._range = ports
        self._program = program
        self._hooks = hooks
        self._firewall = firewall
        self._relays: dict[DatapathReason, RelayDatapath] = {}
        self._conduits: dict[int, SlotEvents] = {}
        self._listeners: set[int] = set()
        self._claim_survivors()
        self._known_lost = self.tables.lost_events()
        self._swept_at = 0.0
        self._events = RingBuffer(program.map("events"))
        self._forget_the_past()
        reactor.watch(self._events.fileno(), self._on_events)
        self._copies = RingBuffer(program.map("held"))
        reactor.watch(self._copies.fileno(), self._on_copies)
        self._caretaker = Caretaker(reactor, hooks, firewall, ports, lambda: self._listeners)

    @property
    def kind(self) -> DatapathKind:
        return DatapathKind.SPLICE

    def _claim_survivors(self) -> None:
        """Sessions of an earlier process go on; their ports are not free."""
        tables = self.tables
        for slot in tables.taken_slots():
            session = tables.session(slot)
            if session.state not in (SessionState.FREE, SessionState.OPENING):
                local, remote = ends(session.legs[0])
                with contextlib.suppress(ValueError):
                    self._ports.claim(*remote, local[1])
                if session.state != SessionState.OPEN:
                    self.server_legs.ended(slot, session.incarnation)

    def _forget_the_past(self) -> None:
        """What was told to an earlier process, and what it was about to do."""
        for slot in freed_just_now(self._events, self.tables):
            self._on_freed(slot)
        clear_handshakes(self.tables)

    # -- Datapath ---------------------------------------------------------------------------------------------------

    def prepare_listener(self, sock: socket.socket) -> None:
        """Everything that comes of it carries the mark, which the firewall wants to see."""
        self.relay(DatapathReason.UNSPECIFIED).prepare_listener(sock)
        sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, MARK_OF_DAEMON)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _LISTENER_MSS)
        port = sock.getsockname()[1]
        self._listeners.add(port)
        self.tables.add_listener(port)
        self._firewall.install(self._range, sorted(self._listeners))

    def prepare_server_leg(
        self,
        sock: socket.socket,
        *,
        destination: tuple[Address, int],
        leg: socket.socket | None,
        smallest_mtu: int | None,
    ) -> None:
        self.server_legs.prepare(sock, destination, leg, smallest_mtu)

    def open(self, server: socket.socket, owner: ConduitOwner, *, resumable: bool) -> SpliceConduit:
        return SpliceConduit(self, server, owner, self.server_legs.claim(server), resumable=resumable)

    def open_accepted(self, server: socket.socket, owner: ConduitOwner, *, resumable: bool) -> SpliceConduit:
        """Its options were agreed on before there was a mobile leg, and its packets were not noted: it is relayed."""
        return SpliceConduit(self, server, owner, None, resumable=resumable, unprepared=DatapathReason.ACCEPTED)

    async def troubles(self) -> dict[str, dict[str, int]]:
        """`dropped` by the programs, `refused` by the kernel of what was crafted, by the `firewall`, and more."""
        found = {
            "dropped": self.tables.drops(),
            "refused": {errno.errorcode.get(code, str(code)): count for code, count in self.output.refused.items()},
            "events": {"lost": self.tables.lost_events()},
            "slots": {"all": self.tables.slots, "free": self.tables.free_slots},
        }
        with contextlib.suppress(SpliceRefused, TimeoutError):
            found["firewall"] = await self._firewall.dropped()
        return found

    def survivors(self) -> list[Survivor]:
        tables = self.tables
        found = (survivor_of(tables.session(slot), slot) for slot in tables.taken_slots() if slot not in self._conduits)
        return [survivor for survivor in found if survivor is not None]

    def adopt(self, survivor: Survivor, owner: ConduitOwner, *, resumable: bool) -> SpliceConduit:
        return AdoptedConduit(self, survivor, owner, resumable=resumable)

    def close(self) -> None:
        """Sessions of the kernel's half go on; what this process holds of it is let go."""
        self._caretaker.close()
        self.reactor.unwatch(self._events.fileno())
        self._events.close()
        self.residuals.close()
        self.reactor.unwatch(self._copies.fileno())
        self._copies.close()
        self.output.close()
        for relay in self._relays.values():
            relay.close()
        if self.tables.is_empty():
            self._hooks.detach_all()
            self._firewall.remove()
            self._program.unload()
        else:
            self._program.close()
        self._hooks.close()
        self.tables.close()

    # -- SpliceHost -------------------------------------------------------------------------------------------------

    def relay(self, reason: DatapathReason) -> RelayDatapath:
        known = self._relays.get(reason)
        if known is None:
            known = self._relays[reason] = RelayDatapath(self.reactor, reason)
        return known

    def enter(self, slot: int, conduit: SlotEvents) -> None:
        self._conduits[slot] = conduit

    def leave(self, slot: int) -> None:
        self._conduits.pop(slot, None)

    # -- events -----------------------------------------------------------------------------------------------------

    def _on_events(self, _events: int) -> None:
        self._events.consume(self._on_event)
        lost = self.tables.lost_events()
        if lost != self._known_lost:
            _log.warning("events_lost", count=lost - self._known_lost, reason="the daemon stood still for a while")
            self._known_lost, self._swept_at = lost, 0.0
            self._sweep()

    def _sweep(self) -> None:
        """Look for what should have been told and was not, in all sessions; not again within a few seconds."""
        now = self.reactor.loop.time()
        if now - self._swept_at < _BETWEEN_SWEEPS_S:
            return
        self._swept_at = now
        tell_soon = self.reactor.call_soon  # this may be within a call of a session's
        for slot in tuple(self.tables.taken_slots()):
            session = self.tables.session(slot)
            conduit = self._conduits.get(slot)
            leg = session.legs[session.active]
            if session.state == SessionState.FREE:
                self._on_freed(slot)
            elif conduit is None:
                continue
            elif session.finished:
                tell_soon(conduit.on_finished)
            elif session.state in (SessionState.RESET, SessionState.RESETTING):
                tell_soon(conduit.on_server_reset)
            elif session.active != SERVER and leg.state == LegState.STOPPED:
                conduit.on_leg_reset(leg.generation)

    def _on_event(self, raw: bytes) -> None:
        kind, slot, incarnation, leg, offset = _EVENT.unpack_from(raw)
        session = self.tables.session(slot)
        if session.incarnation != incarnation:
            return
        conduit = self._conduits.get(slot)
        match kind:
            case EventType.FINISHED if conduit is not None:
                conduit.on_finished()
            case EventType.FREED:
                self._on_freed(slot)
            case EventType.LEG_RESET if conduit is not None:
                conduit.on_leg_reset(offset)
            case EventType.SERVER_RESET if conduit is not None:
                conduit.on_server_reset()
            case EventType.REPLY_MISSING if conduit is not None:
                conduit.on_reply_missing()
            case EventType.SPOKE:
                self.output.send(say(session, leg, 0, b"", RST, sequence=offset))
            case EventType.INEXACT_RESET:
                # A challenge ACK in the mobile's name (RFC 5961 section 3.2): who has no connection says RST to that.
                self.output.send(say(session, SERVER, session.up.acked))
            case EventType.NO_PATH:
                self._find_way(session, SERVER if leg else session.active)
            case EventType.TOO_BIG | EventType.ICMP:
                packet_event = PacketEvent.from_buffer_copy(raw.ljust(_PACKET_EVENT_BYTES, b"\0"))
                tell_sender(session, packet_event, self.output, self.tables.told_mtus)

    def _find_way(self, session: Session, number: int) -> None:
        """Packets to a leg's next hop come to nothing. One that the kernel routes shows the programs which way there is
        now.
        """
        index = session.legs[number].path.ifindex
        self._lost_ways.warn(
            _name_of(index),
            reason="the next hop behind it does not answer; sessions over it stand still until it does",
            remedy="see ip neighbour and ip route; a session that finds another way takes it",
        )
        self.output.send(say(session, number, (session.up if number == SERVER else session.down).acked))

    def _on_copies(self, _events: int) -> None:
        self._copies.consume(self._on_copy)

    def _on_copy(self, raw: bytes) -> None:
        packet = HeldPacket.from_buffer_copy(raw.ljust(_HELD_PACKET_BYTES, b"\0"))
        event = packet.event
        conduit = self._conduits.get(event.slot)
        if conduit is not None and self.tables.session(event.slot).incarnation == event.incarnation:
            conduit.on_held(packet)

    def _on_freed(self, slot: int) -> None:
        if not self.tables.freed(slot):
            return
        self.server_legs.freed(slot)
        session = self.tables.session(slot)
        local, remote = ends(session.legs[0])
        with contextlib.suppress(KeyError):
            self._ports.release(*remote, local[1])
        conduit = self._conduits.pop(slot, None)
        if conduit is not None:
            self.reactor.call_soon(conduit.on_expired)


def _name_of(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return "an interface that is gone"
