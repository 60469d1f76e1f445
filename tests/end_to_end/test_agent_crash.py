"""`kill -9` of the agent: with a service manager that stores descriptors its flows go on, without they end at once."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from tests.end_to_end.conftest import Field
from tests.end_to_end.ends import PATIENCE_S, Ends, eventually, fill, join, listen, read, read_all
from tests.end_to_end.service_manager import ServiceManager

from msocks_lab import LabProcess

MB = 1_000_000

LIBRARY_PROGRAM = """
import asyncio, sys, msocks

async def main():
    reader, writer = await msocks.open_connection(sys.argv[2], int(sys.argv[3]), access=sys.argv[1])
    while line := await asyncio.to_thread(sys.stdin.readline):
        writer.write(line.encode())
        print((await reader.readline()).decode(), end="", flush=True)
    writer.close()

asyncio.run(main())
"""


@pytest.fixture(params=["relay", pytest.param("splice", marks=pytest.mark.long)], scope="session")
def datapath(request: pytest.FixtureRequest) -> str:
    """To the agent they are alike."""
    chosen: str = request.param
    return chosen


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
            size = ("--download", str(4 * MB), "--upload", str(4 * MB))
            round_trips(ends)
            transfer = field.transfer(*size)
            transfer.wait_for(MB // 2)
            kill(field.agent)
            ends.client.sendall(b"typed while nobody listens")
            ends.server.sendall(b"said meanwhile")
            had = transfer.received()
            manager.start_agent("wifi", "lte")
            assert read(ends.server, 26) == b"typed while nobody listens"
            assert read(ends.client, 14) == b"said meanwhile"
            transfer.wait_for(had + MB // 2)
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


@pytest.mark.long
def test_the_next_agent_takes_flows_up_after_a_restart_in_good_order(field: Field) -> None:
    with ServiceManager(field) as manager:
        agent = manager.start_agent("wifi", "lte")
        with joined(field) as ends:
            round_trips(ends)
            agent.send_signal(signal.SIGUSR2)
            assert agent.wait(10) == 0
            manager.start_agent("wifi", "lte")
            round_trips(ends)
            # Ends that came while nobody listened: the server's, and then the program's.
            kill(field.agent)
            ends.server.sendall(b"the last words")
            ends.server.shutdown(socket.SHUT_WR)
            manager.start_agent("wifi", "lte")
            assert read(ends.client, 100) == b"the last words"
            kill(field.agent)
            ends.client.sendall(b"and the answer")
            ends.client.shutdown(socket.SHUT_WR)
            manager.start_agent("wifi", "lte")
            assert read(ends.server, 100) == b"and the answer"
        eventually(lambda: not living(field) and not manager.names)


@contextlib.contextmanager
def library_program(field: Field) -> Iterator[Callable[[], None]]:
    """A program on the mobile host that has a connection by the library; a call sees that bytes go through it."""
    with listen(field) as listener:
        port = str(listener.getsockname()[1])
        program = field.lab.mobile.popen(
            [sys.executable, "-c", LIBRARY_PROGRAM, str(field.access), field.lab.server.ipv4, port],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        server, _ = listener.accept()
    assert program.stdin is not None
    assert program.stdout is not None
    to, back = program.stdin, program.stdout

    def check() -> None:
        to.write(b"by the library\n")
        to.flush()
        assert read(server, 15) == b"by the library\n"
        server.sendall(b"the same way back\n")
        assert back.readline() == b"the same way back\n"

    with server:
        server.settimeout(PATIENCE_S)
        yield check
        to.close()
        program.end()
        assert program.returncode == 0, program.tail()


def test_without_a_store_both_ends_are_reset_and_libraries_left_alone(field: Field) -> None:
    field.start_agent("wifi", "lte")
    with library_program(field) as check_library, joined(field) as ends:
        round_trips(ends)
        check_library()
        kill(field.agent)
        with pytest.raises(ConnectionResetError):
            ends.client.recv(1)
        # The proxy keeps the session for an agent that comes back: nobody does, says the next one.
        ends.server.settimeout(0.5)
        with pytest.raises(TimeoutError):
            ends.server.recv(1)
        field.start_agent("wifi", "lte")
        ends.server.settimeout(5)
        with pytest.raises(ConnectionResetError):
            ends.server.recv(1)
        check_library()


@pytest.mark.long
@pytest.mark.parametrize("lost", ["leg-", "flow-"])
def test_what_was_not_stored_whole_ends_loudly(field: Field, lost: str) -> None:
    with ServiceManager(field) as manager:
        manager.start_agent("wifi", "lte")
        with joined(field) as ends:
            round_trips(ends)
            # The program reads nothing, so that bytes which the proxy takes for received stay in the leg.
            ends.server.setblocking(False)
            fill(ends.server)
            kill(field.agent)
            manager.lose(lost)
            manager.start_agent("wifi", "lte")
            with pytest.raises(ConnectionResetError):
                read_all(ends.client)
            ends.server.settimeout(5)
            with pytest.raises(ConnectionResetError):
                ends.server.recv(1)
        eventually(lambda: not manager.names)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_transfers_outlive_one_kill_after_the_other(field: Field) -> None:
    already = field.accepted_connections()
    with ServiceManager(field) as manager:
        manager.start_agent("wifi", "lte")
        rate = MB // 2
        transfers = [
            field.transfer("--download", str(30 * rate), "--upload", str(30 * rate), "--rate", str(rate))
            for _ in range(4)
        ]
        for transfer in transfers:
            transfer.wait_for(rate // 10)
        kills = 0
        while all(transfer.process.poll() is None for transfer in transfers):
            time.sleep(0.37)
            kill(field.agent)
            manager.start_agent("wifi", "lte")
            kills += 1
            if kills % 3 == 0:
                field.msocks("move", "all", "--to", ("lte", "wifi")[kills // 3 % 2], check=False)
        for transfer in transfers:
            assert transfer.result()["error"] == ""
        assert kills > 10
        assert field.accepted_connections() - already == len(transfers)
