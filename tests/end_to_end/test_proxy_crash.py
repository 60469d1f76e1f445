"""`kill -9` of the proxy: spliced sessions go on meanwhile, and the next proxy knows, lists, moves and ends them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from tests.end_to_end.conftest import MSOCKS, Field
from tests.end_to_end.ends import Ends, eventually, join, read, sockets_toward
from tests.end_to_end.splice_fixtures import own_spliced

__all__ = ["own_spliced"]

MB = 1_000_000


def sessions(field: Field) -> list[dict[str, Any]]:
    """What the proxy's operator sees."""
    listed = field.lab.proxy.run([MSOCKS, "sessions", "--json", "--state", str(field.state)]).stdout
    found: list[dict[str, Any]] = json.loads(listed)["sessions"]
    return found


def crash(field: Field) -> None:
    field.proxy.kill()
    field.proxy.wait()


def advance(ends: Ends, count: int = 10) -> None:
    """Round trips of 10 KB, in both directions."""
    for number in range(count):
        block = bytes([number]) * 10_000
        for this, other in ((ends.client, ends.server), (ends.server, ends.client)):
            this.sendall(block)
            assert read(other, len(block)) == block


def all_durable(field: Field) -> bool:
    return all(session["durable"] for session in sessions(field))


@pytest.mark.parametrize("count", [10])
def test_transfers_outlive_their_proxy_and_move_afterwards(own_spliced: Field, count: int) -> None:
    field = own_spliced
    sizes = ("--download", str(6 * MB), "--upload", str(6 * MB), "--rate", str(MB))
    transfers = [field.transfer(*sizes) for _ in range(count)]
    for transfer in transfers:
        transfer.wait_for(100_000)
    eventually(lambda: all_durable(field))
    before = [transfer.received() for transfer in transfers]
    crash(field)
    time.sleep(1)
    assert all(transfer.received() > had + 300_000 for transfer, had in zip(transfers, before, strict=True))
    field.start_proxy("--open")
    listed = sessions(field)
    assert len(listed) == count
    assert {(session["user"], session["state"], session["datapath"]) for session in listed} == {
        ("alice", "live", "splice")
    }
    assert min(session["bytes_down"] for session in listed) > 300_000
    assert {(flow["link"], flow["moves"]) for flow in field.flows()} == {("wifi", 0)}
    eventually(lambda: field.msocks("move", "all", "--to", "lte", check=False).returncode == 0)
    assert field.carrying("lte") > MB
    assert field.carrying("wifi") < 50_000
    for transfer in transfers:
        assert transfer.result()["error"] == ""
    assert field.lab.server.accepted_connections() == count
    eventually(lambda: not sessions(field))
