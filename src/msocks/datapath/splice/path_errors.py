"""Errors of the path are told to the end that had sent the packet, as a router would (RFC 1191, RFC 8201).

The kernel's half has seen either a segment that does not fit the other leg, or an ICMP error about a segment that it
had rewritten. Both name a packet that the sender would not recognise; it is quoted as the sender had sent it.
"""

from __future__ import annotations

import socket

from msocks.datapath.splice.events import EventType, PacketEvent
from msocks.datapath.splice.icmp import IcmpError, Trouble, fragmentation_needed, parse_error, translate, translated_mtu
from msocks.datapath.splice.layout import SERVER, Leg, LegState, Session
from msocks.datapath.splice.raw_output import RawOutput
from msocks.datapath.splice.segments import ACK, segment
from msocks.datapath.splice.speech import ends
from msocks.datapath.splice.told_mtus import ToldMtus

_WORD = 0xFFFFFFFF
_LEAST_MTU = {4: 576, 6: 1280}
_LARGEST_MTU = 0xFFFF  # that the entry can hold; ICMPv6 can state more
# Others are "hard errors" (RFC 1122 section 4.2.3.9), for which an end may give the connection up; anybody who sees a
# leg can make them, and a session outlives its legs. In the middle of a connection they mean no more than silence does
# (RFC 5927 section 5.2).
_TOLD = {Trouble.TOO_BIG, Trouble.NO_ROUTE, Trouble.HOST_UNREACHABLE}


def tell_sender(session: Session, event: PacketEvent, output: RawOutput, told: ToldMtus) -> None:
    """Answer EVENT_TOO_BIG, or pass EVENT_ICMP on.

    What is malformed, about no segment in flight, or about a leg that was replaced meanwhile, is ignored. `told`
    remembers the path MTUs.
    """
    which = event.event.leg
    other = _other(session, which)
    if other is None:
        return
    packet = bytes(event.packet)[: event.copied]
    if event.event.type == EventType.TOO_BIG:
        _tell_too_big(session.legs[which], other, packet, event.event.offset, output, told)
        return
    error = parse_error(packet)
    if error is not None and error.trouble in _TOLD:
        _pass_on(session, which, other, error, output, told)


def _family(leg: Leg) -> socket.AddressFamily:
    return socket.AF_INET if leg.family == 4 else socket.AF_INET6


def _other(session: Session, which: int) -> Leg | None:
    """The leg across; None where there is no mobile leg, or `which` is one no more."""
    active = session.active
    if active == SERVER or which not in (SERVER, active):
        return None
    leg = session.legs[active if which == SERVER else SERVER]
    return None if leg.state == LegState.NONE else leg


def _tell_too_big(leg: Leg, other: Leg, packet: bytes, mtu: int, output: RawOutput, told: ToldMtus) -> None:
    """`packet` came on `leg`, and the next link of `other` takes `mtu` bytes."""
    local, remote = ends(leg)
    allowed = translated_mtu(mtu, _family(other), _family(leg))
    told.note(remote[0], allowed)
    output.send(fragmentation_needed(router=local[0], quoted=packet, mtu=allowed))


def _pass_on(session: Session, which: int, sender: Leg, error: IcmpError, output: RawOutput, told: ToldMtus) -> None:
    """`error` is about a segment that left on the leg `which`; `sender` is the leg on which it had come."""
    leg = session.legs[which]
    stream = session.up if which == SERVER else session.down
    offset = stream.acked + _signed(error.sequence - leg.out_base - stream.acked)
    if not stream.acked <= offset <= stream.sent:
        return  # nothing in flight has this number: anybody could have made it up (RFC 5927 section 4.1)
    if error.trouble is Trouble.TOO_BIG:
        mtu = min(max(_LEAST_MTU[leg.family], error.mtu), _LARGEST_MTU)
        leg.path_mtu = min(leg.path_mtu or mtu, mtu)
    local, remote = ends(sender)
    if error.trouble is Trouble.TOO_BIG:
        told.note(remote[0], translated_mtu(error.mtu, _family(leg), _family(sender)))
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
