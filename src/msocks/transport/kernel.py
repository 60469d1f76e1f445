"""What is asked of the kernel about one TCP socket, beyond reading and writing."""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import struct
from dataclasses import dataclass

SIOCINQ = 0x541B  # FIONREAD
SIOCOUTQ = 0x5411  # TIOCOUTQ
SO_MAX_PACING_RATE = 47
TCP_NOTSENT_LOWAT = 25
_TCP_INFO_LENGTH = 232
_IP_MINTTL = 21
_IPV6_MINHOPCOUNT = 73
_LARGEST_TTL = 255

# No more than this waits unsent in the kernel of a leg: what lies there is lost time when the leg is replaced.
NOT_SENT_LOW_WATER_BYTES = 128 * 1024


def bytes_unread(sock: socket.socket) -> int:
    """Bytes the kernel has received in order, and so ACKed, that nobody has read (SIOCINQ; a FIN is not counted)."""
    return _int_ioctl(sock, SIOCINQ)


def bytes_unacknowledged(sock: socket.socket) -> int:
    """Sequence space written and not yet ACKed by the peer (SIOCOUTQ; an un-ACKed FIN counts as one; 0 in SYN_SENT)."""
    return _int_ioctl(sock, SIOCOUTQ)


def _int_ioctl(sock: socket.socket, request: int) -> int:
    answer = array.array("i", [0])
    fcntl.ioctl(sock, request, answer)
    return answer[0]


def reset_on_close(sock: socket.socket, enabled: bool = True) -> None:
    """Make close() send RST instead of FIN (SO_LINGER 0).

    A FIN on a leg is a statement of the program that its stream ends here; only an explicit shutdown() may make it.
    A process that dies, in contrast, closes its sockets without meaning it: the RST that this option turns that into
    says "detached", and no truncated stream is taken for a whole one.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", int(enabled), 0))


def prepare_leg(sock: socket.socket) -> None:
    """Options of every mobile leg, at both ends."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, NOT_SENT_LOW_WATER_BYTES)
    reset_on_close(sock)


def deafen(sock: socket.socket) -> None:
    """Have the kernel drop whatever still comes for the socket, before TCP sees it.

    From then on nothing is ACKed that was not received before. What was stays readable. Packets must have a TTL that
    none has that Linux has sent, or that has passed a router (IP_MINTTL, RFC 5082). A socket filter would do the same,
    but some kernels want privilege for one. A socket that is closed already hears nothing in any case.
    """
    ipv6 = sock.family == socket.AF_INET6
    level, option = (socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT) if ipv6 else (socket.IPPROTO_IP, _IP_MINTTL)
    with contextlib.suppress(OSError):
        sock.setsockopt(level, option, _LARGEST_TTL)


def limit_rate(sock: socket.socket, bytes_per_second: float | None) -> None:
    """Let TCP send no faster than that (SO_MAX_PACING_RATE); None takes the limit away."""
    rate = 2**64 - 1 if bytes_per_second is None else int(bytes_per_second)
    sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("Q", rate))


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """The part of struct tcp_info (linux/tcp.h) that is needed; times in milliseconds.

    `delivered_per_s` are bytes per second as the last ACK showed them, `window_segments` the congestion window; in
    `sent_bytes` retransmissions count (`sent_again_bytes`).
    """

    state: int
    retransmits: int
    backoff: int
    rto_ms: float
    unacked_segments: int
    last_data_received_ms: int
    last_ack_received_ms: int
    rtt_ms: float
    rtt_variance_ms: float
    rtt_least_ms: float
    rtt_receiver_ms: float
    acknowledged_bytes: int
    unsent_bytes: int
    segment_bytes: int
    window_segments: int
    delivered_per_s: int
    sent_bytes: int
    sent_again_bytes: int


def tcp_info(sock: socket.socket) -> TcpInfo:
    """Read TCP_INFO. Raises OSError on a socket that is no TCP socket."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_LENGTH)
    state, _ca, retransmits, _probes, backoff = struct.unpack_from("5B", raw)
    words = struct.unpack_from("24I", raw, 8)
    (acknowledged,) = struct.unpack_from("Q", raw, 120)
    unsent, rtt_least_us = struct.unpack_from("2I", raw, 144)
    (delivered,) = struct.unpack_from("Q", raw, 160)
    sent, again = struct.unpack_from("2Q", raw, 200)
    return TcpInfo(
        state=state,
        retransmits=retransmits,
        backoff=backoff,
        rto_ms=words[0] / 1000,
        unacked_segments=words[4],
        last_data_received_ms=words[11],
        last_ack_received_ms=words[12],
        rtt_ms=words[15] / 1000,
        rtt_variance_ms=words[16] / 1000,
        rtt_least_ms=rtt_least_us / 1000,
        rtt_receiver_ms=words[21] / 1000,
        acknowledged_bytes=acknowledged,
        unsent_bytes=unsent,
        segment_bytes=words[2],
        window_segments=words[18],
        delivered_per_s=delivered,
        sent_bytes=sent,
        sent_again_bytes=again,
    )
