"""One flow that can outlive the agent: what is stored of it, and how the next agent takes it up."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable, Container
from dataclasses import asdict, dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from msocks.agent.flow_memory import FlowMemory
from msocks.agent.local_port import ProgramRequest
from msocks.client.adopted_connection import AdoptedConnection, Past
from msocks.client.connection import Connection
from msocks.client.network import ConnectionListener
from msocks.client.node import MobileNode
from msocks.errors import MsocksError
from msocks.policy.model import Hand, OnLoss
from msocks.policy.terms import Term, parse_term
from msocks.protocol.leg import DatapathKind, DatapathReason
from msocks.session.byte_budget import ByteBudget
from msocks.session.mobile_effects import MoveCause
from msocks.transport.descriptor_store import DescriptorStore
from msocks.transport.kept_stream import KeptLeg, KeptPump, LegMark
from msocks.transport.leg_stream import LegStream
from msocks.transport.socket_pump import PumpOwner
from msocks.transport.stream_position import stream_position
from msocks.values.endpoint import Endpoint
from msocks.values.ids import SessionId
from msocks.values.origin import Origin

if TYPE_CHECKING:
    from msocks.agent.flow import Flow, LastMove

_FLOW, _LEG = "flow-", "leg-"
Hands = Callable[["Flow"], tuple[Hand, Origin]]


def flow_name(session: str) -> str:
    """What the program's socket and the memory are stored under."""
    return f"{_FLOW}{session}"


def leg_name(session: str, generation: int) -> str:
    """What a leg is stored under."""
    return f"{_LEG}{session}-{generation}"


class KeptFlow:
    """See the module. Made before the flow, which calls `pump`, `connection`, then `begin` and `end`."""

    def __init__(self, store: DescriptorStore, hands: Hands) -> None:
        """`hands` tells what people have said of a flow, and whose it is. Raises OSError where there is no memory."""
        self._store = store
        self._hands = hands
        self._memory = FlowMemory()
        self._flow: Flow | None = None
        self._pump: KeptPump | None = None
        self._program: tuple[int, int] | None = None  # counters of the program's socket when the streams began
        self._legs: set[int] = set()

    def pump(self, node: MobileNode, sock: socket.socket, owner: PumpOwner, budget: ByteBudget) -> KeptPump:
        """Couples the program's socket and the stream."""
        self._pump = KeptPump(node.reactor, sock, owner, node.sweep, budget, self._memory.ring(budget))
        return self._pump

    def connection(
        self, node: MobileNode, destination: Endpoint, stream: LegStream, listener: ConnectionListener
    ) -> Connection:
        """The flow's session."""
        return Connection(node, destination, stream, listener)

    def begin(self, flow: Flow) -> None:
        """The program was told that its connection stands: from now on the flow can be taken up."""
        assert self._pump is not None
        stream = self._pump.stream
        try:
            at = stream_position(flow.program)
        except OSError:
            return  # it has gone already, which shows at the next read
        self._flow = flow
        self._program = at.read - stream.written, at.written - stream.position
        self._listen()
        self._on_legs()
        if self._flow is not None:
            self._store.put(flow_name(flow.session.hex()), [self._memory.descriptor, flow.program.fileno()])
            self._memory.let_go()

    def note(self) -> None:
        """What people have said of the flow has changed, or its latest move is known."""
        if self._flow is not None:
            self._write()

    def end(self) -> None:
        """Nothing is left to be taken up; before the sockets are closed."""
        if self._flow is None:
            if self._memory.descriptor >= 0:
                self._memory.let_go()
            return
        session = self._flow.session.hex()
        self._flow = None
        self._store.remove(flow_name(session))
        for generation in self._legs:
            self._store.remove(leg_name(session, generation))
        self._legs.clear()

    def _listen(self) -> None:
        assert self._pump is not None
        self._pump.stream.on_legs = self._on_legs
        self._pump.stream.on_leg_closed = self._on_leg_closed

    def _on_legs(self) -> None:
        flow, pump = self._flow, self._pump
        if flow is None or pump is None:
            return
        for leg in pump.stream.marks() or ():
            if leg.mark.generation not in self._legs:
                self._legs.add(leg.mark.generation)
                self._store.put(leg_name(flow.session.hex(), leg.mark.generation), [leg.sock.fileno()])
        self._write()

    def _on_leg_closed(self, generation: int) -> None:
        if self._flow is not None and generation in self._legs:
            self._legs.discard(generation)
            self._store.remove(leg_name(self._flow.session.hex(), generation))

    def _write(self) -> None:
        assert self._flow is not None
        assert self._pump is not None
        marks = [leg.mark for leg in self._pump.stream.marks() or ()]
        try:
            self._memory.write(_record(self._flow, self._program, marks, self._hands))
        except ValueError:  # a policy's wish of unusual length: such a flow is not kept
            self.end()


class AdoptedFlow(KeptFlow):
    """A flow that an earlier agent has stored.

    Raises ValueError where its record is damaged, or another version's, or where the bytes do not fit together.
    """

    def __init__(self, store: DescriptorStore, hands: Hands, found: Stored) -> None:
        self._store = store
        self._hands = hands
        self._memory = found.memory
        self._record = found.record
        self._pump = None
        self._legs = set(found.legs)
        self._sock = found.program
        self._flow = None
        try:
            record = found.record
            self.destination = Endpoint.parse(record["destination"])
            self.origin = _origin(record["origin"])
            self.hand = _hand(record["hand"])
            self.since = float(record["since"])
            self.last_move = _last_move(record["last_move"])
            self._past = Past(
                found.session,
                int(record["generation"]),
                str(record["link"]),
                int(record["moves"]),
                DatapathKind[record["datapath"]],
                DatapathReason[record["datapath_reason"]],
                told_split=any(leg["split"] for leg in record["legs"][-1:]),
            )
            self._program = read, written = int(record["program"][0]), int(record["program"][1])
            marks = [LegMark(**leg) for leg in record["legs"]]
        except (KeyError, TypeError, AttributeError, MsocksError) as error:
            raise ValueError(f"its record is damaged: {error!r}") from None
        self._at = stream_position(self._sock)
        self._given, self._taken = self._at.written - written, self._at.read - read
        self._kept_legs = _usable_legs(found, marks, self._given)

    def pump(self, node: MobileNode, sock: socket.socket, owner: PumpOwner, budget: ByteBudget) -> KeptPump:
        ring = self._memory.ring(budget)
        base = self._memory.base
        sent = base
        for leg in self._kept_legs[-1:]:
            sent = leg.at.written - (leg.mark.written or 0)
        ring.resume_at(base, max(base, sent), self._taken)
        self._pump = KeptPump(node.reactor, sock, owner, node.sweep, budget, ring)
        self._pump.resume(self._at)
        self._pump.stream.resume(self._given, self._kept_legs)
        return self._pump

    def connection(
        self, node: MobileNode, destination: Endpoint, stream: LegStream, listener: ConnectionListener
    ) -> Connection:
        return AdoptedConnection(node, destination, stream, listener, self._past)

    def begin(self, flow: Flow) -> None:
        self._flow = flow
        self._listen()
        for generation in self._legs - {leg.mark.generation for leg in self._kept_legs}:
            self._on_leg_closed(generation)
        self._write()

    def drop(self) -> None:
        """It cannot go on: reset it at both ends."""
        session = self._past.session.hex()
        self._sock.close()
        for leg in self._kept_legs:
            leg.sock.close()
        for name in (flow_name(session), *(leg_name(session, each) for each in self._legs)):
            self._store.remove(name)

    def request(self) -> ProgramRequest:
        """In place of what the program said to the earlier agent."""
        return ProgramRequest(self._sock, _Answered(), self.destination, self.origin)


@dataclass(slots=True)
class Stored:
    """What there is of one flow: its memory, the program's socket, and legs by generation."""

    session: SessionId
    memory: FlowMemory
    record: dict[str, Any]
    program: socket.socket
    legs: dict[int, socket.socket]

    def close_legs(self, but: Container[int] = ()) -> None:
        """Close all legs but those of the given generations."""
        for generation, sock in self.legs.items():
            if generation not in but:
                sock.close()


class _Answered:
    """A program that was answered by an earlier agent."""

    name = "adopted"

    def grant(self, bound: Endpoint | None) -> bytes:
        del bound
        return b""

    def refuse(self, error: MsocksError) -> bytes:
        del error
        return b""

    def take_trailing(self) -> bytes:
        return b""


def sort_inherited(inherited: dict[str, list[int]]) -> tuple[list[Stored], list[str], list[str]]:
    """What was handed to this process, by flow; sessions of which not enough is there; and all their names."""
    found: list[Stored] = []
    broken: list[str] = []
    names: list[str] = []
    legs: dict[str, dict[int, socket.socket]] = {}
    for name, descriptors in inherited.items():
        session, _, generation = name.removeprefix(_LEG).partition("-")
        if name.startswith(_LEG) and generation.isdecimal():
            legs.setdefault(session, {})[int(generation)] = _socket(descriptors)
    for name, descriptors in inherited.items():
        if not name.startswith(_FLOW):
            continue
        session = name.removeprefix(_FLOW)
        own = legs.pop(session, {})
        try:
            found.append(_stored(session, descriptors, own))
        except (ValueError, OSError):
            for sock in own.values():
                sock.close()
            broken.append(session)
            names += [name, *(leg_name(session, each) for each in own)]
    for session, own in legs.items():
        for sock in own.values():
            sock.close()
        names += [leg_name(session, each) for each in own]
    return found, broken, names


def _stored(session: str, descriptors: list[int], legs: dict[int, socket.socket]) -> Stored:
    files = [each for each in descriptors if stat.S_ISREG(os.fstat(each).st_mode)]
    sockets = [each for each in descriptors if each not in files]
    try:
        if len(files) != 1 or len(sockets) != 1:
            raise ValueError("the memory and one socket make a flow")
        memory = FlowMemory(files.pop())
        record = memory.read()
        return Stored(SessionId.from_hex(session), memory, record, _socket([sockets.pop()]), legs)
    finally:
        for each in [*files, *sockets]:
            os.close(each)


def _socket(descriptors: list[int]) -> socket.socket:
    sock = socket.socket(fileno=descriptors[0])
    sock.setblocking(False)
    for other in descriptors[1:]:  # nobody stores two under this name
        with contextlib.suppress(OSError):
            os.close(other)
    return sock


def _usable_legs(found: Stored, marks: list[LegMark], given: int) -> list[KeptLeg]:
    """The legs that carried, where all of them are there and their counters can be believed; others are closed."""
    legs = [KeptLeg(found.legs[mark.generation], mark, stream_position(found.legs[mark.generation]))
            for mark in marks if mark.generation in found.legs]  # fmt: skip
    first = next((leg for leg in legs if leg.mark.read is not None), None)
    # What the program was given has been in the leg; of a dead one nobody knows whether a FIN is counted.
    read = 0 if first is None else first.at.read - (first.mark.read or 0)
    if (
        first is None
        or len(legs) != len(marks)
        or any(leg.at.is_dead for leg in legs)
        or not read <= given <= read + first.at.unread
    ):
        legs = []
    found.close_legs([leg.mark.generation for leg in legs])
    return legs


def _record(flow: Flow, program: tuple[int, int] | None, marks: list[LegMark], hands: Hands) -> dict[str, Any]:
    view, (hand, origin) = flow.view(), hands(flow)
    move = view.last_move
    return {
        "destination": str(flow.destination),
        "origin": asdict(origin) | {"source": None if origin.source is None else str(origin.source)},
        "hand": {
            "pin": hand.pin,
            "moved": hand.moved,
            "prefer": [_text(term) for term in hand.prefer],
            "on_loss": hand.on_loss,
        },
        "since": view.since,
        "last_move": None if move is None else [move.cause, move.from_link, move.to_link, move.at],
        "generation": flow.connection.generation,
        "link": flow.connection.carried_by,
        "moves": view.moves,
        "datapath": flow.connection.datapath.name,
        "datapath_reason": flow.connection.datapath_reason.name,
        "program": program,
        "legs": [asdict(mark) for mark in marks],
    }


def _text(term: Term) -> str:
    return term if isinstance(term, str) else term.text


def _origin(kept: dict[str, Any]) -> Origin:
    source = kept["source"]
    return replace(Origin(**kept), source=None if source is None else ip_address(source))


def _hand(kept: dict[str, Any]) -> Hand:
    on_loss = None if kept["on_loss"] is None else OnLoss(kept["on_loss"])
    return Hand(kept["pin"], kept["moved"], tuple(parse_term(text) for text in kept["prefer"]), on_loss)


def _last_move(kept: list[Any] | None) -> LastMove | None:
    from msocks.agent.flow import LastMove

    return None if kept is None else LastMove(MoveCause(kept[0]), str(kept[1]), str(kept[2]), float(kept[3]))
