"""TCP sockets without a handshake and without an end (TCP_REPAIR): connections leave the kernel, and come back."""

from __future__ import annotations

import contextlib
import socket
import struct

from msocks.datapath.splice.segments import MAPPED_PREFIX, End

_SO_MARK = 36
_TCP_REPAIR = 19
_TCP_REPAIR_QUEUE = 20
_TCP_QUEUE_SEQ = 21
_TCP_REPAIR_OPTIONS = 22
_TCP_TIMESTAMP = 24
_TCP_REPAIR_WINDOW = 29
_ON = 1
_OFF_WITHOUT_PROBE = -1
_RECEIVE_QUEUE = 1
_SEND_QUEUE = 2
_OPTION_MSS = 2
_OPTION_WSCALE = 3
_OPTION_SACK = 4
_OPTION_TIMESTAMPS = 8


def vanish(sock: socket.socket) -> None:
    """Close the socket so that its peer hears nothing, and nothing more of it. Never raises an OSError."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _ON)
    with contextlib.suppress(OSError):
        sock.close()


def rebuild(
    local: End,
    remote: End,
    *,
    snd_nxt: int,
    rcv_nxt: int,
    snd_wnd: int,
    rcv_wnd: int,
    snd_wscale: int,
    rcv_wscale: int,
    mss: int,
    sack: bool,
    timestamps: tuple[int, int] | None,
    mark: int,
) -> socket.socket:
    """An established, non-blocking socket of a connection that has everything acknowledged so far.

    Args:
        local: Of the connection; an address of this host.
        remote: The peer.
        snd_nxt: Sequence number of the next byte to send (RFC 9293 section 3.3.1).
        rcv_nxt: Sequence number of the next byte to receive.
        snd_wnd: Bytes that the peer takes from `snd_nxt` on.
        rcv_wnd: Bytes that the peer may send from `rcv_nxt` on.
        snd_wscale: Shift of the windows that the peer offers.
        rcv_wscale: Shift of the windows that this end offers.
        mss: The largest segment that the peer takes.
        sack: Whether SACK was agreed on.
        timestamps: This end's clock and the newest TSval of the peer; None where there are none.
        mark: SO_MARK.

    Raises:
        OSError: The addresses are in use, or the privilege (CAP_NET_ADMIN) is missing.
    """
    ipv4 = local[0].startswith(MAPPED_PREFIX)
    sock = socket.socket(
        socket.AF_INET if ipv4 else socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP
    )
    try:
        tcp = socket.IPPROTO_TCP
        sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(tcp, _TCP_REPAIR, _ON)
        for queue, number in ((_SEND_QUEUE, snd_nxt), (_RECEIVE_QUEUE, rcv_nxt)):
            sock.setsockopt(tcp, _TCP_REPAIR_QUEUE, queue)
            sock.setsockopt(tcp, _TCP_QUEUE_SEQ, struct.pack("=I", number))
        sock.bind(_sockaddr(local, ipv4))
        sock.connect(_sockaddr(remote, ipv4))
        options = [(_OPTION_MSS, mss), (_OPTION_WSCALE, snd_wscale | rcv_wscale << 16)]
        if sack:
            options.append((_OPTION_SACK, 0))
        if timestamps is not None:
            options.append((_OPTION_TIMESTAMPS, 0))
        sock.setsockopt(tcp, _TCP_REPAIR_OPTIONS, b"".join(struct.pack("=II", *each) for each in options))
        if timestamps is not None:
            sock.setsockopt(tcp, _TCP_TIMESTAMP, struct.pack("=I", timestamps[0]))
        window = struct.pack("=5I", rcv_nxt, snd_wnd, max(snd_wnd, 1), rcv_wnd, rcv_nxt)
        sock.setsockopt(tcp, _TCP_REPAIR_WINDOW, window)
        sock.setsockopt(tcp, _TCP_REPAIR, _OFF_WITHOUT_PROBE)
    except BaseException:
        vanish(sock)
        raise
    return sock


def _sockaddr(end: End, ipv4: bool) -> tuple[str, int]:
    address, port = end
    if ipv4:
        return socket.inet_ntoa(address[12:]), port
    return socket.inet_ntop(socket.AF_INET6, address), port
