"""What the splice has to do with a packet, said a second time: plain integers, no packet memory, no differences.

The model knows offsets as signed numbers of any size. What it says of one packet is compared with the result of the
kernel's half to the last bit: verdict, frame, session, counters and events.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tests.datapath.splice.packet_bench import (
    DROP,
    ENDS,
    NEXT,
    NEXT_HOPS,
    OWN,
    REDIRECT,
    WRAP,
    Result,
    Rig,
    Seen,
    Segment,
    Told,
    read,
    signed,
)

from msocks.datapath.splice.events import EventType
from msocks.datapath.splice.layout import (
    NO_FIN,
    SERVER,
    DropReason,
    Leg,
    LegFlag,
    LegState,
    Session,
    SessionFlag,
    SessionState,
    Stream,
)
from msocks.datapath.splice.segments import ACK, FIN, RST, SYN

SLACK = 65536
SACK_REACH = 1 << 30
_END, _NOP, _SACK, _TIMESTAMPS = 0, 1, 5, 8
# The clock's.
_TIMES = ("last_ns", "complained_ns", "held_ns", "woke_ms")
HELD_MOST = 8
_LEG_TIMES = ("ts_in_at", "ts_out_at")


class Dropped(Exception):
    """The packet goes no further."""

    def __init__(self, reason: DropReason) -> None:
        self.reason = reason


@dataclass(slots=True)
class Expected:
    """Of one packet."""

    session: Session
    reason: DropReason | None = None
    seen: Seen | None = None
    told: list[Told] = field(default_factory=list)


def near(reference: int, low: int) -> int:
    """The offset next to `reference` whose low 32 bits are `low`."""
    return reference + signed(low - reference)


class Model:
    """A session and the packet that comes to it. Timestamps are told only where the shifts are fixed."""

    def __init__(self, session: Session, leg: int, arrived: Seen, gso_size: int = 0) -> None:
        self.session = session
        self.leg = leg
        self.from_mobile = leg != SERVER
        self.segment = arrived.segment
        self.arrived = arrived
        self.gso_size = gso_size
        self.mobile: Leg = session.legs[session.active]
        self.server: Leg = session.legs[SERVER]
        self.into, self.out = (self.mobile, self.server) if self.from_mobile else (self.server, self.mobile)
        self.data, self.back = (session.up, session.down) if self.from_mobile else (session.down, session.up)
        self.told: list[Told] = []
        self.offset = near(signed(self.data.acked, 64), self.segment.sequence - self.into.in_base)
        self.said = near(signed(self.back.acked, 64), self.segment.acknowledgment - self.into.out_base)

    def expect(self) -> Expected:
        try:
            return Expected(self.session, seen=self._cross(), told=self.told)
        except Dropped as dropped:
            self.data.dropped += 1
            return Expected(self.session, reason=dropped.reason, told=self.told)

    # -- the way through ---------------------------------------------------------------------------------------------

    def _cross(self) -> Seen:
        session, segment, flags = self.session, self.segment, self.segment.flags
        if session.state == SessionState.RESETTING and not flags & RST:
            self._tell(EventType.SPOKE, segment.acknowledgment)
        if session.state not in (SessionState.OPEN, SessionState.CLOSING):
            raise Dropped(DropReason.STALE_FLOW)
        if self.from_mobile and (self.leg != session.active or self.into.state != LegState.LIVE):
            raise Dropped(DropReason.STALE_LEG)
        if not self.arrived.tcp_checksum and not self.gso_size:
            raise Dropped(DropReason.CHECKSUM)
        end = self.offset + len(segment.payload)
        if segment.hop_limit <= 1:
            raise Dropped(DropReason.HOP_LIMIT)
        is_known = self.from_mobile and self.offset >= signed(self.into.begins_in, 64)
        if end + self.data.widest + SLACK < signed(self.data.acked, 64) and not is_known:
            raise Dropped(DropReason.OLD_SEQUENCE)
        if self.offset > signed(self.data.edge, 64) + SLACK:
            raise Dropped(DropReason.BEYOND_WINDOW)
        if session.flags & SessionFlag.STOPPED:
            if flags & RST:
                if self._implausible_reset() is None:
                    self._reset()
            elif session.parked_ns and not self.from_mobile:
                self._parked(end)
            raise Dropped(DropReason.STOPPED)
        if session.flags & SessionFlag.RESUMING and not self.from_mobile and segment.payload:
            if self.offset > signed(session.down.acked, 64):
                if session.held < HELD_MOST:
                    session.held += 1
                    self._note(end, with_fin=False)
                    raise Dropped(DropReason.OUT_OF_TURN)
                if end > signed(session.mobile_edge, 64):
                    raise Dropped(DropReason.OUT_OF_TURN)
            else:
                session.flags &= ~SessionFlag.RESUMING
        if not self.out.path.known:
            raise Dropped(DropReason.NO_PATH)
        if flags & RST:
            reason = self._implausible_reset()
            if reason is not None:
                raise Dropped(reason)
        elif not flags & (ACK | SYN):
            raise Dropped(DropReason.NO_ACK)
        acknowledges, window = self._acknowledge() if flags & ACK else (-self.out.in_base, 0)
        self._fits()
        options = self._options(acknowledges)
        if flags & RST:
            reason = self._reset()
            if reason is not None:
                raise Dropped(reason)
        if not flags & (SYN | RST):
            self._note(end)
        if not session.finished and finished(session.up) and finished(session.down):
            session.finished, session.state = 1, SessionState.CLOSING
            self._tell(EventType.FINISHED, 0)
        return self._leave(
            replace(
                segment,
                sequence=(self.out.out_base + self._stands_at()) % WRAP,
                acknowledgment=(self.out.in_base + acknowledges) % WRAP,
                window=window,
                options=options,
                hop_limit=segment.hop_limit - 1,
            )
        )

    def _stands_at(self) -> int:
        """An ACK without data is moved to where the other end takes it for one."""
        if self.segment.payload or self.segment.flags & (SYN | FIN | RST):
            return self.offset
        if self.from_mobile:
            acked = signed(self.data.acked, 64)
            return acked if acked - self.offset > 1 else self.offset
        return min(self.offset, signed(self.session.mobile_edge, 64))

    def _tell(self, kind: EventType, offset: int) -> None:
        self.told.append(Told(kind, self.leg, offset))

    def _complain(self, kind: EventType, offset: int) -> None:
        """Once in a while: a session has complained just now, or never."""
        if not self.session.complained_ns:
            self.session.complained_ns = 1
            self._tell(kind, offset)

    def _is_exact(self) -> bool:
        return self.offset in {signed(self.data.acked, 64), signed(self.data.sent, 64), signed(self.into.arrived, 64)}

    def _implausible_reset(self) -> DropReason | None:
        """RFC 5961 section 3.2: where the mobile is not to judge, the server is asked."""
        if self._is_exact() or not self.session.flags & SessionFlag.RESUMABLE:
            return None
        if not self.from_mobile:
            self._complain(EventType.INEXACT_RESET, 0)
        return DropReason.INEXACT_RESET

    def _reset(self) -> DropReason | None:
        """What detaches a leg is not passed on."""
        session, resumable = self.session, self.session.flags & SessionFlag.RESUMABLE
        if not self._is_exact():
            return None
        self._tell(EventType.LEG_RESET if self.from_mobile else EventType.SERVER_RESET, self.into.generation)
        if self.from_mobile and resumable:
            self.into.state = LegState.STOPPED
            session.flags |= SessionFlag.STOPPED
            session.held, session.parked_ns = 0, 1
        else:
            session.state = SessionState.RESET if resumable else SessionState.RESETTING
        return DropReason.RESET_DETACHES if resumable else None

    def _parked(self, end: int) -> None:
        """What a parked session learns of its server."""
        up, segment = self.session.up, self.segment
        if segment.flags & ACK and signed(up.acked, 64) - up.widest - SLACK <= self.said <= signed(up.sent, 64):
            up.acked = max(signed(up.acked, 64), self.said)
            if not segment.flags & SYN:
                window = segment.window << self.into.in_scale
                up.edge, up.widest = max(signed(up.edge, 64), self.said + window), max(up.widest, window)
        if not segment.flags & SYN and (segment.payload or segment.flags & FIN):
            self._note(end)
        if len(segment.options) == 12 and segment.options.startswith(bytes.fromhex("0101080a")):
            self.server.ts_in = newer(self.server.ts_in, int.from_bytes(segment.options[4:8], "big"))
        if segment.payload:
            self.session.held = min(self.session.held + 1, HELD_MOST)

    def _acknowledge(self) -> tuple[int, int]:
        """The offset that is acknowledged on the other leg, and the window field there."""
        back, flags = self.back, self.segment.flags
        acked, sent = signed(back.acked, 64), signed(back.sent, 64)
        if not flags & RST and self.said + back.widest + SLACK < acked:
            raise Dropped(DropReason.OLD_ACK)
        if not flags & RST and self.said > sent + back.widest + SLACK:
            raise Dropped(DropReason.ACK_OF_UNSENT)
        begins = signed(self.into.begins_out, 64)
        told = max(self.said, begins)
        if not self.from_mobile:
            told = max(told, signed(self.out.begins_in, 64))
        told = min(told, signed(self.out.arrived, 64))
        window = self.segment.window << (0 if flags & SYN else self.into.in_scale)
        edge = self.said + window
        if not flags & RST:
            if self.from_mobile:
                back.acked = max(acked, told)
                if self.said >= begins:
                    self.into.flags |= LegFlag.REPLY_ACKED
            elif self.said <= sent:
                back.acked = max(acked, self.said)
        if not flags & (SYN | RST):
            back.edge = max(signed(back.edge, 64), edge)
            back.widest = max(back.widest, window)
            if self.from_mobile:
                session = self.session
                session.mobile_edge = max(signed(session.mobile_edge, 64), edge)
        if self.from_mobile and self.said < begins and back.packets:
            self._complain(EventType.REPLY_MISSING, self.into.generation)
        return told, min(max(0, edge - told) >> (0 if flags & SYN else self.out.out_scale), 0xFFFF)

    def _fits(self) -> None:
        limits = [limit for limit in (self.out.path.mtu, self.out.path_mtu) if limit]
        headers = (20 if self.out.family == 4 else 40) + 20 + len(self.segment.options)
        if limits and headers + (self.gso_size or len(self.segment.payload)) > min(limits):
            self._complain(EventType.TOO_BIG, min(limits))
            raise Dropped(DropReason.TOO_BIG)

    def _note(self, end: int, *, with_fin: bool = True) -> None:
        data, has_fin = self.data, with_fin and bool(self.segment.flags & FIN)
        if data.fin != NO_FIN and end > data.fin + 1:
            data.fin = NO_FIN
        if has_fin and end + 1 >= signed(data.sent, 64):
            data.fin = end
        data.sent = max(signed(data.sent, 64), end + has_fin)
        self.into.arrived = max(signed(self.into.arrived, 64), end + has_fin)
        data.packets += 1

    def _leave(self, segment: Segment) -> Seen:
        number = self.session.active if self.leg == SERVER else SERVER
        remote, local = ENDS[number, self.out.family]
        label = self.arrived.label
        if self.into.family != self.out.family:
            label = 0x4000 if self.out.family == 4 else 0
        macs = (NEXT_HOPS[number], OWN[number])
        if not self.out.path.ethernet:
            macs = (self.arrived.destination_mac, self.arrived.source_mac)
        return replace(
            self.arrived,
            destination_mac=macs[0],
            source_mac=macs[1],
            source=local,
            destination=remote,
            segment=segment,
            label=label,
        )

    # -- options -----------------------------------------------------------------------------------------------------

    def _options(self, acknowledges: int) -> bytes:
        found = list(walk(self.segment.options))
        stamps = [body for kind, _, body in found if kind == _TIMESTAMPS and len(body) == 8]
        echo = None
        if stamps and self.out.flags & LegFlag.TIMESTAMPS:
            echo = self._timestamps(int.from_bytes(stamps[-1][:4], "big"), int.from_bytes(stamps[-1][4:], "big"))
        options = bytearray(self.segment.options)
        for kind, at, body in found:
            if kind == _TIMESTAMPS and len(body) == 8:
                made = None
                if echo is not None:
                    shift, tsecr = echo
                    made = numbers(int.from_bytes(body[:4], "big") + shift, tsecr)
            elif kind == _SACK and body and len(body) % 8 == 0:
                made = self._blocks(body, acknowledges) if self.out.flags & LegFlag.SACK else b""
                # What is left out leaves room at the end.
                kept = bytes([_SACK, 2 + len(made)]) + made if made else b""
                options[at : at + 2 + len(body)] = kept.ljust(2 + len(body), bytes([_NOP]))
                continue
            else:
                continue
            if made is None:
                options[at : at + 2 + len(body)] = bytes([_NOP]) * (2 + len(body))
            else:
                options[at + 2 : at + 2 + len(body)] = made
        return bytes(options)

    def _timestamps(self, tsval: int, tsecr: int) -> tuple[int, int]:
        """What is added to TSval, and TSecr: the clocks of the ends differ by two fixed numbers."""
        mobile, server = self.mobile, self.server
        assert mobile.flags & LegFlag.SHIFT_IN_SET
        assert mobile.flags & LegFlag.SHIFT_OUT_SET
        if self.from_mobile:
            shift, tsecr = mobile.shift_in, (tsecr - mobile.shift_out) % WRAP
            if signed(tsecr - server.ts_in) > 0:
                tsecr = server.ts_in
            server.ts_out, mobile.ts_in = newer(server.ts_out, tsval + shift), newer(mobile.ts_in, tsval)
        else:
            shift, tsecr = mobile.shift_out, (tsecr - mobile.shift_in) % WRAP
            mobile.ts_out, server.ts_in = newer(mobile.ts_out, tsval + shift), newer(server.ts_in, tsval)
        return shift, tsecr

    def _blocks(self, body: bytes, acknowledges: int) -> bytes:
        """Blocks of the stream that comes back; of what the other end has not sent on its leg nothing is said."""
        made = b""
        for at in range(0, len(body), 8):
            left, right = (
                near(acknowledges, int.from_bytes(body[at + edge : at + edge + 4], "big") - self.into.out_base)
                for edge in (0, 4)
            )
            if right <= acknowledges:  # a duplicate, RFC 2883
                if left < max(signed(self.into.begins_out, 64), acknowledges - SACK_REACH):
                    continue
            else:
                right = min(right, signed(self.out.arrived, 64))
                if left >= right or left <= acknowledges:
                    continue
            made += numbers(self.out.in_base + left, self.out.in_base + right)
        return made


def finished(stream: Stream) -> bool:
    """Whether its FIN is acknowledged."""
    return stream.fin != NO_FIN and signed(stream.acked, 64) > stream.fin


def newer(one: int, other: int) -> int:
    return other % WRAP if signed(other - one) > 0 else one


def numbers(*values: int) -> bytes:
    return b"".join((value % WRAP).to_bytes(4, "big") for value in values)


def walk(options: bytes) -> list[tuple[int, int, bytes]]:
    """Kind, place and body of each option, up to the end or to the first that cannot be right."""
    found, at = [], 0
    while at < len(options) and options[at] != _END:
        if options[at] == _NOP:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2 or at + length > len(options):
            break
        found.append((options[at], at, options[at + 2 : at + length]))
        at += length
    return found


def timeless(session: Session) -> bytes:
    """A session without the marks of the clock."""
    copy = Session.from_buffer_copy(bytes(session))
    for name in _TIMES:
        setattr(copy, name, 0)
    copy.parked_ns = bool(copy.parked_ns)
    for leg in copy.legs:
        for name in _LEG_TIMES:
            setattr(leg, name, 0)
    return bytes(copy)


def describe(session: Session) -> dict[str, object]:
    """For the message of a failure."""
    copy = Session.from_buffer_copy(timeless(session))
    seen = {name: getattr(copy, name) for name in ("state", "active", "flags", "finished")}
    for stream in ("up", "down"):
        for name, *_ in Stream._fields_:
            seen[f"{stream}.{name}"] = signed(getattr(getattr(copy, stream), name), 64)
    for number, leg in enumerate(copy.legs):
        for name in ("state", "flags", "arrived", "shift_in", "shift_out", "ts_in", "ts_out"):
            seen[f"legs[{number}].{name}"] = getattr(leg, name)
    return seen


def check(rig: Rig, leg: int, segment: Segment, *, gso_size: int = 0) -> Result:
    """Send a segment from the peer of a leg through the splice, and compare everything with the model."""
    return check_frame(rig, leg, rig.frame(leg, segment), gso_size=gso_size)


def check_frame(rig: Rig, leg: int, data: bytes, *, gso_size: int = 0) -> Result:
    """The same of a whole frame."""
    expected = Model(rig.snapshot(), leg, read(data), gso_size).expect()
    result = rig.run(data, gso_size=gso_size)
    compare(rig, expected, result)
    return result


def compare(rig: Rig, expected: Expected, result: Result) -> None:
    """Everything that one packet has changed, with what it had to change."""
    if expected.reason is not None:
        assert (result.verdict, result.drops) == (DROP, {expected.reason.name.lower(): 1})
    else:
        assert (result.verdict, result.drops) == (REDIRECT, {})
        assert read(result.frame) == expected.seen
    assert result.told == expected.told
    assert describe(rig.session) == describe(expected.session)
    assert timeless(rig.session) == timeless(expected.session)


def untouched(rig: Rig, data: bytes, *, program: str = "splice_ingress") -> None:
    """The kernel gets a packet as it came."""
    before = rig.snapshot()
    result = rig.run(data, program=program)
    assert (result.verdict, result.frame, result.drops, result.told) == (NEXT, data, {}, [])
    assert bytes(rig.session) == bytes(before)


def refused(rig: Rig, data: bytes, reason: DropReason) -> None:
    """A packet is dropped for what it is, before anybody looks at the session."""
    before = rig.snapshot()
    result = rig.run(data)
    assert (result.verdict, result.drops, result.told) == (DROP, {reason.name.lower(): 1}, [])
    assert bytes(rig.session) == bytes(before)
