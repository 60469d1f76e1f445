"""Errors of the path are told to the end that had sent the packet, as a router would (RFC 1191, RFC 8201).

The kernel's half has seen either a segment that does not fit the other leg, or an ICMP error about a segment that it
had rewritten. Both name a packet that the sender would not recognise; it is quoted as the sender had sent it.
"""

from __future__ import annotations

import socket

from msocks.datapath.splice.icmp import IcmpError, Trouble, fragmentation_needed, parse_error, translate, translated_mtu
from msocks.datapath.splice.layout import LEGS, SERVER, EventType, Leg, PacketEvent, Session
from msocks.datapath.splice.raw_output import RawOutput
from msocks.datapath.splice.segments import ACK, segment
from msocks.datapath.splice.speech import ends

_WORD = 0xFFFFFFFF
_LEAST_MTU = {4: 576, 6: 1280}


def tell_sender(session: Session, event: PacketEvent, output: RawOutput) -> None:
    """Answer EVENT_TOO_BIG, or pass EVENT_ICMP on; what is malformed or of no segment in flight is ignored."""
    which = event.event.leg
    if which >= LEGS:
        return
    packet = bytes(event.packet)[: event.copied]
    if event.event.type == EventType.TOO_BIG:
        _tell_too_big(session, which, packet, event.event.offset, output)
        return
    error = parse_error(packet)
    if error is not None:
        _pass_on(session, which, error, output)


def _family(leg: Leg) -> socket.AddressFamily:
    return socket.AF_INET if leg.family == 4 else socket.AF_INET6


def _other(session: Session, which: int) -> Leg:
    return session.legs[session.active] if which == SERVER else session.legs[SERVER]


def _tell_too_big(session: Session, which: int, packet: bytes, mtu: int, output: RawOutput) -> None:
    """`packet` came on the leg, and the other one's next link takes `mtu` bytes."""
    leg = session.legs[which]
    local, _ = ends(leg)
    allowed = translated_mtu(mtu, _family(_other(session, which)), _family(leg))
    output.send(fragmentation_needed(router=local[0], quoted=packet, mtu=allowed))


def _pass_on(session: Session, which: int, error: IcmpError, output: RawOutput) -> None:
    """`error` is about a segment that left on the leg; its sender is the other leg's end."""
    leg, sender = session.legs[which], _other(session, which)
    stream = session.up if which == SERVER else session.down
    offset = stream.acked + _signed(error.sequence - leg.out_base - stream.acked)
    if not stream.acked <= offset <= stream.sent:
        return  # nothing in flight has this number: anybody could have made it up (RFC 5927 section 4.1)
    if error.trouble is Trouble.TOO_BIG:
        mtu = max(_LEAST_MTU[leg.family], error.mtu)
        leg.path_mtu = min(leg.path_mtu or mtu, mtu)
    local, remote = ends(sender)
    quoted = segment(
        source=remote,
        destination=local,
        sequence=sender.in_base + offset & _WORD,
        acknowledgment=0,
        flags=ACK,
        window=0,
    )
    output.send(translate(error, router=local[0], quoted=quoted))


def _signed(word: int) -> int:
    word &= _WORD
    return word - (1 << 32) if word >> 31 else word
