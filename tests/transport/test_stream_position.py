"""What the kernel's counters say of a connection, in each of its states."""

from __future__ import annotations

import itertools
import socket
import time

import pytest

from msocks.transport.kernel import reset_on_close
from msocks.transport.stream_position import stream_position


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    return client, server


@pytest.mark.parametrize("ends", [*itertools.permutations(("ours", "theirs")), ("ours",), ("theirs",), ()])
@pytest.mark.parametrize("active", [True, False])
def test_counts_are_of_bytes_whoever_has_ended(ends: tuple[str, ...], active: bool) -> None:
    ours, theirs = connected() if active else connected()[::-1]
    with ours, theirs:
        before = stream_position(ours)
        ours.sendall(bytes(3000))
        theirs.sendall(bytes(2000))
        assert len(ours.recv(500, socket.MSG_WAITALL)) == 500
        for end in ends:
            (ours if end == "ours" else theirs).shutdown(socket.SHUT_WR)
        time.sleep(0.02)  # a FIN is there when the other end's kernel has had its turn
        after = stream_position(ours)
        assert (after.read - before.read, after.unread, after.written - before.written) == (500, 1500, 3000)
        assert (after.fin_sent, after.is_dead) == ("ours" in ends, False)
        assert len(ours.recv(5000)) == 1500
        if "theirs" in ends:
            assert ours.recv(1) == b""
        assert stream_position(ours).read - before.read == 2000


def test_a_reset_is_not_an_end_and_is_still_told_afterwards() -> None:
    ours, theirs = connected()
    with ours:
        reset_on_close(theirs)
        theirs.close()
        assert stream_position(ours).is_dead
        with pytest.raises(ConnectionResetError):
            ours.recv(1)
