"""`kill -9` of the agent: with a service manager that stores descriptors its flows go on, without they end at once."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator

import pytest
from tests.end_to_end.conftest import Field, Transfer
from tests.end_to_end.ends import Ends, eventually, join, read
from tests.end_to_end.service_manager import ServiceManager

from msocks_lab import LabProcess

MB = 1_000_000


@pytest.fixture
def field(lasting_field: Field) -> Iterator[Field]:
    """A running proxy; the test starts the agents."""
    lasting_field.agent = None
    yield lasting_field
    lasting_field.clear()


def joined(field: Field) -> Ends:
    return join(field, is_spliced=field.datapath == "splice")


def kill(agent: LabProcess | None) -> None:
    assert agent is not None
    agent.kill()
    agent.wait()


def round_trips(ends: Ends, count: int = 3) -> None:
    for number in range(count):
        block = bytes([65 + number]) * 1000
        for this, other in ((ends.client, ends.server), (ends.server, ends.client)):
            this.sendall(block)
            assert read(other, len(block)) == block


def living(field: Field) -> list[tuple[str, str, int]]:
    return [(flow["state"], flow["link"], flow["moves"]) for flow in field.flows() if flow["state"] != "ended"]


def test_flows_go_on_with_the_next_agent_and_move(field: Field) -> None:
    already = field.accepted_connections()
    with ServiceManager(field) as manager:
        manager.start_agent("wifi", "lte")
        with joined(field) as ends:
            size = ("--download", str(8 * MB), "--upload", str(6 * MB))
            round_trips(ends)
            transfer = field.transfer(*size)
            transfer.wait_for(MB)
            kill(field.agent)
            ends.client.sendall(b"typed while nobody listens")
            ends.server.sendall(b"said meanwhile")
            had = transfer.received()
            manager.start_agent("wifi", "lte")
            assert read(ends.server, 26) == b"typed while nobody listens"
            assert read(ends.client, 14) == b"said meanwhile"
            transfer.wait_for(had + MB)
            assert living(field) == [("live", "wifi", 0), ("live", "wifi", 0)]
            eventually(lambda: field.msocks("move", "all", "--to", "lte", check=False).returncode == 0)
            round_trips(ends)
            assert {(state, link) for state, link, _ in living(field)} == {("live", "lte")}
            kill(field.agent)
            manager.start_agent("wifi", "lte")
            round_trips(ends)
            assert transfer.result()["error"] == ""
        eventually(lambda: not living(field))
        assert field.accepted_connections() - already == 2
        eventually(lambda: not manager.names)
