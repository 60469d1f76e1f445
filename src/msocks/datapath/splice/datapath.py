"""The splice as a datapath: owns the loaded programs, and passes on what they tell."""

from __future__ import annotations

import contextlib
import ctypes
import socket

import structlog

from msocks.datapath.interface import ConduitOwner
from msocks.datapath.relay import RelayDatapath
from msocks.datapath.splice.conduit import SpliceConduit
from msocks.datapath.splice.firewall import Firewall
from msocks.datapath.splice.hooks import Hooks
from msocks.datapath.splice.host import SlotEvents
from msocks.datapath.splice.layout import MARK_OF_DAEMON, SERVER, Event, EventType, PacketEvent, SessionState
from msocks.datapath.splice.libbpf import RingBuffer
from msocks.datapath.splice.loader import SpliceProgram
from msocks.datapath.splice.options import read_options
from msocks.datapath.splice.path_errors import tell_sender
from msocks.datapath.splice.ports import PortAllocator, PortRange
from msocks.datapath.splice.raw_output import RawOutput
from msocks.datapath.splice.refusal import SpliceRefused
from msocks.datapath.splice.segments import RST
from msocks.datapath.splice.server_legs import ServerLegs
from msocks.datapath.splice.speech import ends, say
from msocks.datapath.splice.tables import Tables
from msocks.datapath.splice.told_mtus import ToldMtus
from msocks.protocol.leg import DatapathKind, DatapathReason
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Address

_log = structlog.get_logger("msocks.datapath.splice")

_SO_MARK = 36
# An IPv4 leg's segments must fit when they leave over IPv6, whose header is longer.
_LISTENER_MSS = 1440
# Somebody else may take away what the splice stands on.
_LOOK_AFTER_S = 5.0
_EVENT_BYTES = ctypes.sizeof(Event)
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
        self.told_mtus = ToldMtus()
        self._ports = PortAllocator(ports)
        self.server_legs = ServerLegs(self.tables, self._ports)
        self._range = ports
        self._program = program
        self._hooks = hooks
        self._firewall = firewall
        self._relays: dict[DatapathReason, RelayDatapath] = {}
        self._conduits: dict[int, SlotEvents] = {}
        self._listeners: set[int] = set()
        self._claim_survivors()
        self._events = RingBuffer(program.map("events"))
        reactor.watch(self._events.fileno(), self._on_events)
        self._looking_after = reactor.loop.call_later(_LOOK_AFTER_S, self._look_after)

    @property
    def kind(self) -> DatapathKind:
        return DatapathKind.SPLICE

    def _claim_survivors(self) -> None:
        """Sessions of an earlier process go on; their ports are not free."""
        tables = self.tables
        for slot in range(tables.slots):
            session = tables.session(slot)
            if session.state not in (SessionState.FREE, SessionState.OPENING):
                local, remote = ends(session.legs[0])
                with contextlib.suppress(ValueError):
                    self._ports.claim(*remote, local[1])

    def _look_after(self) -> None:
        """Put back what somebody has taken away: until then the other of the two keeps the sessions from harm."""
        for name in self._hooks.verify():
            _log.warning(
                "programs_attached_again", interface=name, reason="somebody had detached the splice's programs"
            )
        try:
            if self._listeners and not self._firewall.present():
                self._firewall.install(self._range, sorted(self._listeners))
                _log.warning("firewall_installed_again", reason="somebody had removed the splice's nftables table")
        except SpliceRefused as error:
            _log.error("firewall_missing", reason=str(error), remedy=error.remedy)
        self._looking_after = self.reactor.loop.call_later(_LOOK_AFTER_S, self._look_after)

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
        mobile = read_options(leg, unread=False) if leg is not None else None
        self.server_legs.prepare(sock, destination, mobile, smallest_mtu)

    def open(self, server: socket.socket, owner: ConduitOwner, *, resumable: bool) -> SpliceConduit:
        return SpliceConduit(self, server, owner, self.server_legs.claim(server), resumable=resumable)

    def close(self) -> None:
        """Sessions of the kernel's half go on; what this process holds of it is let go."""
        self._looking_after.cancel()
        self.reactor.unwatch(self._events.fileno())
        self._events.close()
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

    def _on_event(self, raw: bytes) -> None:
        event = Event.from_buffer_copy(raw)
        session = self.tables.session(event.slot)
        if session.incarnation != event.incarnation:
            return
        conduit = self._conduits.get(event.slot)
        match event.type:
            case EventType.LEG_RESET if conduit is not None:
                conduit.on_leg_reset(event.offset)
            case EventType.SERVER_RESET if conduit is not None:
                conduit.on_server_reset()
            case EventType.FINISHED if conduit is not None:
                conduit.on_finished()
            case EventType.REPLY_MISSING if conduit is not None:
                conduit.on_reply_missing()
            case EventType.FREED:
                self._on_freed(event.slot)
            case EventType.SPOKE:
                self.output.send(say(session, event.leg, 0, b"", RST, sequence=event.offset))
            case EventType.NO_PATH:
                # A packet that the kernel routes shows the programs which way there is now.
                other = SERVER if event.leg else session.active
                self.output.send(say(session, other, (session.up if event.leg else session.down).acked))
            case EventType.TOO_BIG | EventType.ICMP:
                packet_event = PacketEvent.from_buffer_copy(raw.ljust(_PACKET_EVENT_BYTES, b"\0"))
                tell_sender(session, packet_event, self.output, self.told_mtus)

    def _on_freed(self, slot: int) -> None:
        session = self.tables.session(slot)
        local, remote = ends(session.legs[0])
        with contextlib.suppress(KeyError):
            self._ports.release(*remote, local[1])
        self.tables.freed(slot)
        conduit = self._conduits.pop(slot, None)
        if conduit is not None:
            conduit.on_expired()
