"""Much through one session, and many sessions at once."""

from __future__ import annotations

import hashlib
import os

import pytest
from tests.end_to_end.conftest import Field
from tests.end_to_end.ends import Ends, connect, datapath_at_proxy, eventually, listen, read, sockets_toward
from tests.end_to_end.splice_fixtures import spliced

__all__ = ["spliced"]

MB = 1_000_000


def test_one_session_carries_more_than_its_numbers_can_count(spliced: Field, soak: bool) -> None:
    """Sequence numbers have 32 bits: 4.3 GB each way with --soak, whose every byte the ends compare."""
    size = 4500 * MB if soak else 50 * MB
    transfer = spliced.transfer("--download", str(size), "--upload", str(size))
    result = transfer.result(1100 if soak else 60)
    assert result["error"] == ""
    assert result["download"]["bytes"] == result["upload"]["bytes"] == size
    spliced.carried()


@pytest.mark.parametrize("bytes_each", [10_000])
def test_many_sessions_at_once(spliced: Field, soak: bool, bytes_each: int) -> None:
    count = 1000 if soak else 100
    talks: list[Ends] = []
    with listen(spliced) as listener:
        port = listener.getsockname()[1]
        for _ in range(count):
            client = connect(spliced, port, plain=True)
            server, _ = listener.accept()
            server.settimeout(20)
            talks.append(Ends(client, server, port))
    eventually(lambda: not sockets_toward(spliced, port))
    assert datapath_at_proxy(spliced) == {("splice", "unspecified")}
    for turn in range(3):
        blocks = [os.urandom(bytes_each) for _ in talks]
        for talk, block in zip(talks, blocks, strict=True):
            talk.client.sendall(block)
            talk.server.sendall(block[::-1])
        for talk, block in zip(talks, blocks, strict=True):
            for sock, expected in ((talk.server, block), (talk.client, block[::-1])):
                assert hashlib.sha256(read(sock, bytes_each)).digest() == hashlib.sha256(expected).digest(), turn
    for talk in talks:
        talk.client.close()
        assert read(talk.server, 1) == b""
        talk.server.close()
