"""What the kernel half tells by its ring buffers: the structures of ``bpf/layout.h`` for that, see `layout`."""

from __future__ import annotations

import ctypes
from enum import IntEnum

EVENT_PACKET_BYTES = 1280
HELD_PACKET_BYTES = 16384


class EventType(IntEnum):
    """enum event_type."""

    LEG_RESET = 1
    SERVER_RESET = 2
    FINISHED = 3
    FREED = 4
    SPOKE = 5
    TOO_BIG = 6
    ICMP = 7
    NO_PATH = 8
    REPLY_MISSING = 9
    INEXACT_RESET = 10
    HELD = 11


class Event(ctypes.Structure):
    """struct event."""

    type: int
    slot: int
    incarnation: int
    leg: int
    offset: int
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("slot", ctypes.c_uint32),
        ("incarnation", ctypes.c_uint32),
        ("leg", ctypes.c_uint32),
        ("offset", ctypes.c_uint64),
    )


class PacketEvent(ctypes.Structure):
    """struct packet_event."""

    event: Event
    length: int
    copied: int
    _fields_ = (
        ("event", Event),
        ("length", ctypes.c_uint32),
        ("copied", ctypes.c_uint32),
        ("packet", ctypes.c_uint8 * EVENT_PACKET_BYTES),
    )


class HeldPacket(ctypes.Structure):
    """struct held_packet."""

    event: Event
    arrived_ns: int
    tsval: int
    headers: int
    copied: int
    segment: int
    packet: ctypes.Array[ctypes.c_uint8]
    _fields_ = (
        ("event", Event),
        ("arrived_ns", ctypes.c_uint64),
        ("tsval", ctypes.c_uint32),
        ("headers", ctypes.c_uint32),
        ("copied", ctypes.c_uint32),
        ("segment", ctypes.c_uint32),
        ("packet", ctypes.c_uint8 * HELD_PACKET_BYTES),
    )
