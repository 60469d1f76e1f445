"""How far a TCP connection has come, asked of the kernel: the same for a process that has just got its socket."""

from __future__ import annotations

import array
import fcntl
import select
import socket
import struct
from dataclasses import dataclass

from msocks.transport.kernel import SIOCINQ, SIOCOUTQ

_ACKED_AND_RECEIVED = 120  # tcpi_bytes_acked and tcpi_bytes_received of struct tcp_info (linux/tcp.h), 64 bits each
_LENGTH = 136
# enum in net/tcp_states.h.
_FIN_WAIT1, _FIN_WAIT2, _TIME_WAIT, _CLOSE, _CLOSE_WAIT, _LAST_ACK, _CLOSING = 4, 5, 6, 7, 8, 9, 11
_FIN_SENT = frozenset({_FIN_WAIT1, _FIN_WAIT2, _TIME_WAIT, _LAST_ACK, _CLOSING})
_FIN_RECEIVED = frozenset({_TIME_WAIT, _CLOSE_WAIT, _LAST_ACK, _CLOSING})
_TRIES = 1000


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """Bytes since the connection began, each count up to a constant of the connection (whether its SYN counts).

    Attributes:
        read: Received and read.
        unread: Received, in order, and not read.
        written: Written, ACKed or not.
        unacknowledged: Of these not ACKed; an un-ACKed FIN counts as one.
        fin_sent: Whether this side has ended its direction.
        is_dead: It was reset, or timed out. The counts may be wrong by one then: nobody knows whether a FIN had come.
    """

    read: int
    unread: int
    written: int
    unacknowledged: int
    fin_sent: bool
    is_dead: bool


def stream_position(sock: socket.socket) -> StreamPosition:
    """Ask the kernel. Raises OSError on what is no TCP connection, or never was one."""
    before = _tcp_info(sock)
    for _ in range(_TRIES):
        unread, unacknowledged = _ioctl(sock, SIOCINQ), _ioctl(sock, SIOCOUTQ)
        after = _tcp_info(sock)
        if after == before:
            break  # nothing came between: the four figures belong together
        before = after
    state, acked, received = after
    # A connection that both sides have ended is closed as well, and what came before the end can still be read.
    both_ended = state == _CLOSE and not _has_error(sock)
    fin_sent = both_ended or state in _FIN_SENT
    return StreamPosition(
        read=received - unread - (both_ended or state in _FIN_RECEIVED),
        unread=unread,
        written=acked + unacknowledged - fin_sent,
        unacknowledged=unacknowledged,
        fin_sent=fin_sent,
        is_dead=state == _CLOSE and not both_ended,
    )


def _tcp_info(sock: socket.socket) -> tuple[int, int, int]:
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LENGTH)
    acked, received = struct.unpack_from("2Q", raw, _ACKED_AND_RECEIVED)
    return raw[0], acked, received


def _has_error(sock: socket.socket) -> bool:
    """Whether the connection has failed. SO_ERROR would tell too, but to the first who asks alone."""
    poll = select.poll()
    poll.register(sock, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _ioctl(sock: socket.socket, request: int) -> int:
    answer = array.array("i", [0])
    fcntl.ioctl(sock, request, answer)
    return answer[0]
