"""What the splice's kernel half and this half share: the structures of ``bpf/layout.h``, laid out alike.

They are ctypes structures because they lie in memory that both write (the maps are mapped into this process): an
attribute is read and written where the kernel's half reads and writes it. A test compares every offset with the type
information of the compiled object. Numbers are in host order, ports in network order (`network_port`).
"""

from __future__ import annotations

import ctypes
from enum import IntEnum

from msocks.datapath.splice.events import Event, HeldPacket, PacketEvent

LAYOUT_VERSION = 2
MARK_OF_DAEMON = 0x4D534F43
SERVER = 0
LEGS = 3
NO_FIN = 0xFFFF_FFFF_FFFF_FFFF
NO_SPLIT = 0xFFFF_FFFF_FFFF_FFFF


class SessionState(IntEnum):
    """enum session_state."""

    FREE = 0
    OPENING = 1
    OPEN = 2
    CLOSING = 3
    RESET = 4
    RESETTING = 5


class LegState(IntEnum):
    """enum leg_state."""

    NONE = 0
    HANDSHAKE = 1
    LIVE = 2
    STOPPED = 3


class LegFlag(IntEnum):
    """enum leg_flags; bits of a number."""

    TIMESTAMPS = 1
    SACK = 2
    SHIFT_IN_SET = 4
    SHIFT_OUT_SET = 8
    NOTED = 16
    REPLY_ACKED = 32
    SUCCEEDED = 64
    AWAITED = 128


class SessionFlag(IntEnum):
    """enum session_flags; bits of a number."""

    RESUMABLE = 1
    STOPPED = 2
    STRIP_TIMESTAMPS = 4
    RESUMING = 8
    CLOSED_WINDOW = 16


class DropReason(IntEnum):
    """enum drop_reason: why the splice dropped a packet."""

    MALFORMED = 0
    IP_OPTIONS = 1
    FRAGMENT = 2
    HOP_LIMIT = 3
    STALE_FLOW = 4
    STALE_LEG = 5
    STOPPED = 6
    OLD_SEQUENCE = 7
    BEYOND_WINDOW = 8
    OLD_ACK = 9
    ACK_OF_UNSENT = 10
    NO_ACK = 11
    INEXACT_RESET = 12
    RESET_DETACHES = 13
    TOO_BIG = 14
    NO_PATH = 15
    FAMILY_CHANGE = 16
    KERNEL_SPOKE = 17
    UNTIMELY_ACK = 18
    OPTIONS = 19
    CHECKSUM = 20
    OUT_OF_TURN = 21
    EARLY_ACK = 22


_Address = ctypes.c_uint8 * 16
_Hardware = ctypes.c_uint8 * 6


class FlowKey(ctypes.Structure):
    """struct flow_key."""

    _fields_ = (
        ("remote", _Address),
        ("local", _Address),
        ("remote_port", ctypes.c_uint16),
        ("local_port", ctypes.c_uint16),
    )


class Flow(ctypes.Structure):
    """struct flow."""

    _fields_ = (("slot", ctypes.c_uint32), ("incarnation", ctypes.c_uint32), ("leg", ctypes.c_uint32))


class OpeningKey(ctypes.Structure):
    """struct opening_key."""

    _fields_ = (("remote", _Address), ("remote_port", ctypes.c_uint16), ("local_port", ctypes.c_uint16))


class Path(ctypes.Structure):
    """struct path."""

    ifindex: int
    mtu: int
    ethernet: int
    known: int
    misses: int
    fresh_until: int
    _fields_ = (
        ("ifindex", ctypes.c_uint32),
        ("mtu", ctypes.c_uint16),
        ("ethernet", ctypes.c_uint8),
        ("known", ctypes.c_uint8),
        ("next_hop", _Hardware),
        ("own", _Hardware),
        ("misses", ctypes.c_uint32),
        ("fresh_until", ctypes.c_uint64),
    )


class Leg(ctypes.Structure):
    """struct leg."""

    family: int
    state: int
    in_scale: int
    out_scale: int
    flags: int
    generation: int
    in_base: int
    out_base: int
    begins_in: int
    begins_out: int
    arrived: int
    shift_in: int
    shift_out: int
    ts_in: int
    ts_out: int
    ts_in_at: int
    ts_out_at: int
    reply_length: int
    consumed: int
    round_trip_ms: int
    path_mtu: int
    announced: int
    remote_port: int
    local_port: int
    path: Path
    _fields_ = (
        ("remote", _Address),
        ("local", _Address),
        ("remote_port", ctypes.c_uint16),
        ("local_port", ctypes.c_uint16),
        ("family", ctypes.c_uint8),
        ("state", ctypes.c_uint8),
        ("in_scale", ctypes.c_uint8),
        ("out_scale", ctypes.c_uint8),
        ("flags", ctypes.c_uint32),
        ("generation", ctypes.c_uint32),
        ("in_base", ctypes.c_uint32),
        ("out_base", ctypes.c_uint32),
        ("begins_in", ctypes.c_uint64),
        ("begins_out", ctypes.c_uint64),
        ("arrived", ctypes.c_uint64),
        ("shift_in", ctypes.c_uint32),
        ("shift_out", ctypes.c_uint32),
        ("ts_in", ctypes.c_uint32),
        ("ts_out", ctypes.c_uint32),
        ("ts_in_at", ctypes.c_uint64),
        ("ts_out_at", ctypes.c_uint64),
        ("reply_length", ctypes.c_uint32),
        ("consumed", ctypes.c_uint32),
        ("round_trip_ms", ctypes.c_uint32),
        ("path_mtu", ctypes.c_uint16),
        ("announced", ctypes.c_uint16),
        ("path", Path),
    )


class Stream(ctypes.Structure):
    """struct stream."""

    sent: int
    acked: int
    edge: int
    fin: int
    packets: int
    widest: int
    dropped: int
    _fields_ = (
        ("sent", ctypes.c_uint64),
        ("acked", ctypes.c_uint64),
        ("edge", ctypes.c_uint64),
        ("fin", ctypes.c_uint64),
        ("packets", ctypes.c_uint64),
        ("widest", ctypes.c_uint32),
        ("dropped", ctypes.c_uint32),
    )


class Handover(ctypes.Structure):
    """struct handover."""

    split: int
    up_split: int
    acked: int
    room: int
    allowance: int
    since: int
    timed_end: int
    timed_at: int
    timed_from: int
    least_ns: int
    base: int
    reply_length: int
    from_leg: int
    to: int
    timed_trip: int
    _fields_ = (
        ("split", ctypes.c_uint64),
        ("up_split", ctypes.c_uint64),
        ("acked", ctypes.c_uint64),
        ("room", ctypes.c_uint64),
        ("allowance", ctypes.c_uint64),
        ("since", ctypes.c_uint64),
        ("timed_end", ctypes.c_uint64),
        ("timed_at", ctypes.c_uint64),
        ("timed_from", ctypes.c_uint64),
        ("least_ns", ctypes.c_uint64),
        ("base", ctypes.c_uint32),
        ("reply_length", ctypes.c_uint32),
        ("from_leg", ctypes.c_uint8),
        ("to", ctypes.c_uint8),
        ("timed_trip", ctypes.c_uint8),
        ("unused", ctypes.c_uint8 * 5),
    )


class Session(ctypes.Structure):
    """struct session."""

    legs: ctypes.Array[Leg]
    up: Stream
    down: Stream
    state: int
    active: int
    flags: int
    finished: int
    incarnation: int
    last_ns: int
    complained_ns: int
    mobile_edge: int
    owed_up: int
    owed_down: int
    parked_ns: int
    held_ns: int
    held: int
    woke_ms: int
    handover: Handover
    _fields_ = (
        ("legs", Leg * LEGS),
        ("up", Stream),
        ("down", Stream),
        ("state", ctypes.c_uint8),
        ("active", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("finished", ctypes.c_uint8),
        ("incarnation", ctypes.c_uint32),
        ("last_ns", ctypes.c_uint64),
        ("complained_ns", ctypes.c_uint64),
        ("mobile_edge", ctypes.c_uint64),
        ("owed_up", ctypes.c_uint32),
        ("owed_down", ctypes.c_uint32),
        ("parked_ns", ctypes.c_uint64),
        ("held_ns", ctypes.c_uint64),
        ("held", ctypes.c_uint32),
        ("woke_ms", ctypes.c_uint32),
        ("handover", Handover),
    )


class Config(ctypes.Structure):
    """struct config."""

    first_port: int
    last_port: int
    slots: int
    opening_ns: int
    open_ns: int
    half_closed_ns: int
    closing_ns: int
    reset_ns: int
    _fields_ = (
        ("first_port", ctypes.c_uint16),
        ("last_port", ctypes.c_uint16),
        ("slots", ctypes.c_uint32),
        ("opening_ns", ctypes.c_uint64),
        ("open_ns", ctypes.c_uint64),
        ("half_closed_ns", ctypes.c_uint64),
        ("closing_ns", ctypes.c_uint64),
        ("reset_ns", ctypes.c_uint64),
    )


class ToldMtu(ctypes.Structure):
    """struct told_mtu."""

    until_ns: int
    mtu: int
    _fields_ = (("until_ns", ctypes.c_uint64), ("mtu", ctypes.c_uint32), ("unused", ctypes.c_uint32))


class Busy(ctypes.Structure):
    """struct busy."""

    count: int
    _fields_ = (("count", ctypes.c_uint64), ("unused", ctypes.c_uint64 * 7))


STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "flow_key": FlowKey,
    "flow": Flow,
    "opening_key": OpeningKey,
    "path": Path,
    "leg": Leg,
    "stream": Stream,
    "handover": Handover,
    "session": Session,
    "config": Config,
    "event": Event,
    "packet_event": PacketEvent,
    "held_packet": HeldPacket,
    "told_mtu": ToldMtu,
    "busy": Busy,
}
"""By the name in ``layout.h``."""


def network_port(port: int) -> int:
    """A port as it lies in network order in a field of 16 bits."""
    return (port & 0xFF) << 8 | port >> 8
