"""TCP connections that go without a packet, and come without a handshake (TCP_REPAIR of linux/tcp.h).

Both need CAP_NET_ADMIN in the user namespace of the network.
"""

from __future__ import annotations

import socket
import struct

from msocks.datapath.splice.refusal import SpliceRefused
from msocks.datapath.splice.segments import MAPPED_PREFIX, End
from msocks.protocol.leg import DatapathReason

_TCP_REPAIR = 19
_TCP_REPAIR_QUEUE = 20
_TCP_QUEUE_SEQ = 21
_TCP_REPAIR_OPTIONS = 22
_TCP_TIMESTAMP = 24
_TCP_REPAIR_WINDOW = 29

_ON = 1
_OFF = 0  # sends a window probe
_OFF_WITHOUT_PROBE = -1  # TCP_REPAIR_OFF_NO_WP
_RECEIVE_QUEUE, _SEND_QUEUE = 1, 2
_LONGEST_QUEUE_BYTES = 1 << 16
_OPTION_MSS, _OPTION_WINDOW_SCALE, _OPTION_SACK, _OPTION_TIMESTAMPS = 2, 3, 4, 8


def vanish(sock: socket.socket) -> None:
    """Close a connected socket so that the connection is gone from this host, and the peer is told nothing.

    What lies unread or unsent in it is gone too. While another descriptor of the socket exists, it stays, in repair.
    A socket whose connection is lost, or that is closed already, is no error.

    Raises:
        SpliceRefused: CAP_NET_ADMIN is missing; the socket is as it was.
    """
    try:
        _enter_repair(sock)
    except OSError:
        pass  # there is nothing left that could be said
    sock.close()


def unheard(sock: socket.socket) -> bytes:
    """What was written to a socket and its peer has not acknowledged; it is in repair from then on, to be closed.

    Raises OSError where the connection is lost.
    """
    _enter_repair(sock)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, _SEND_QUEUE)
    return sock.recv(_LONGEST_QUEUE_BYTES, socket.MSG_PEEK)


def provoke(sock: socket.socket) -> None:
    """Make a connected socket send an ACK without data now, one before what its peer expects: a window probe.

    Raises:
        SpliceRefused: CAP_NET_ADMIN is missing.
        OSError: The connection is lost.
    """
    _enter_repair(sock)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _OFF)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # which leaving repair has taken away


def rebuild(
    local: End,
    remote: End,
    *,
    snd_nxt: int,
    rcv_nxt: int,
    snd_wnd: int,
    rcv_wnd: int,
    snd_wscale: int | None,
    rcv_wscale: int,
    mss: int,
    sack: bool,
    tsval: int | None,
    mark: int,
) -> socket.socket:
    """A socket in the middle of a connection: ESTABLISHED, non-blocking, nothing to send and nothing to read.

    Nothing is sent by this call. The local port may be that of a listener or of other connections, and further
    sockets may be bound to it afterwards (with SO_REUSEADDR, as these).

    The kernel cannot be told the last timestamp that the peer has sent. It learns it from the next segment that comes;
    what is sent before echoes 0, which measures no round trip and harms nothing else.

    Args:
        local: An address of this host.
        remote: Of the same family.
        snd_nxt: The sequence number of the next byte to the peer, everything before being ACKed.
        rcv_nxt: That of the next byte from the peer, everything before being taken.
        snd_wnd: Bytes that the peer will take from snd_nxt on.
        rcv_wnd: Bytes that the peer was told it may send from rcv_nxt on. What the socket's buffer cannot hold of
            them is dropped, and sent again.
        snd_wscale: Shift of the peer's windows, None where none was agreed on.
        rcv_wscale: Shift of this end's windows, where one was agreed on.
        mss: The MSS that the peer announced, timestamps not deducted.
        sack: SACK was agreed on.
        tsval: The timestamp that may stand in the next segment; None where timestamps were not agreed on. It goes on
            from there by one a millisecond.
        mark: SO_MARK.

    Raises:
        SpliceRefused: CAP_NET_ADMIN is missing.
        OSError: EADDRNOTAVAIL where this host has no such address, or has this very connection already; ENETUNREACH
            and the like where there is no route.
    """
    ipv4 = local[0].startswith(MAPPED_PREFIX)
    sock = socket.socket(socket.AF_INET if ipv4 else socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _enter_repair(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sock.bind(_name(local, ipv4))
        for queue, number in ((_SEND_QUEUE, snd_nxt), (_RECEIVE_QUEUE, rcv_nxt)):
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, queue)
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ, struct.pack("=I", number))
        sock.connect(_name(remote, ipv4))
        # connect() has chosen a scale for the windows of this end. Where none was agreed on a shift of 0 takes it back,
        # or every window would be divided by it. (TCP_INFO says then that windows are scaled, by 0.)
        scales = 0 if snd_wscale is None else snd_wscale | rcv_wscale << 16
        agreed = [(_OPTION_MSS, mss), (_OPTION_WINDOW_SCALE, scales)]
        if sack:
            agreed.append((_OPTION_SACK, 0))
        if tsval is not None:
            agreed.append((_OPTION_TIMESTAMPS, 0))
        options = b"".join(struct.pack("=II", *option) for option in agreed)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_OPTIONS, options)
        if tsval is not None:
            # The lowest bit says that the clock counts microseconds (since Linux 6.7): round up to an even number.
            even = (tsval + (tsval & 1)) & 0xFFFFFFFF
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_TIMESTAMP, struct.pack("=I", even))
        # struct tcp_repair_window: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup
        windows = struct.pack("=5I", rcv_nxt, snd_wnd, max(snd_wnd, mss), rcv_wnd, rcv_nxt)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_WINDOW, windows)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _OFF_WITHOUT_PROBE)
        # Repair lets a socket be bound to any port, and when it ends forbids every other socket the port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except BaseException:
        # Still in repair unless the last step failed, so that closing it sends nothing.
        sock.close()
        raise
    return sock


def _enter_repair(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _ON)
    except PermissionError as error:
        raise SpliceRefused(
            "the kernel does not let this process take a connection apart",
            remedy="give the proxy CAP_NET_ADMIN (systemd: AmbientCapabilities=), or run it with the relay",
            reason=DatapathReason.NO_PRIVILEGE,
        ) from error


def _name(end: End, ipv4: bool) -> tuple[str, int]:
    address, port = end
    return (socket.inet_ntoa(address[12:]) if ipv4 else socket.inet_ntop(socket.AF_INET6, address)), port
