"""Whose connection is it? Asked of the kernel about real sockets and processes."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from msocks.agent.program_lookup import ProgramLookup
from msocks.values.origin import Origin

CONNECT = "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2]))); sys.stdin.read()"


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family) as sock:
        yield sock


def start(listener: socket.socket, *before: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    host, port = listener.getsockname()[:2]
    process = subprocess.Popen([*before, sys.executable, "-c", CONNECT, host, str(port)], stdin=subprocess.PIPE)
    accepted, _ = listener.accept()
    return process, accepted


async def test_the_process_and_its_user_are_found(listener: socket.socket):
    process, accepted = start(listener)
    lookup = ProgramLookup()
    with accepted:
        found = await lookup.origin_of(accepted)
        process.communicate()
    await lookup.close()
    assert (found.pid, found.uid, found.user) == (process.pid, os.geteuid(), pwd.getpwuid(os.geteuid()).pw_name)
    assert found.process is not None
    assert found.process.startswith("python")


async def test_many_are_found_together_and_each_is_its_own(listener: socket.socket):
    started = [start(listener) for _ in range(5)]
    lookup = ProgramLookup()
    found = await asyncio.gather(*(lookup.origin_of(accepted) for _, accepted in started))
    await lookup.close()
    for process, accepted in started:
        process.communicate()
        accepted.close()
    assert [origin.pid for origin in found] == [process.pid for process, _ in started]


async def test_another_users_process_is_told_by_its_user(listener: socket.socket):
    process, accepted = start(listener, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    lookup = ProgramLookup()
    with accepted:
        found = await lookup.origin_of(accepted)
        process.communicate()
    await lookup.close()
    assert (found.uid, found.user, found.pid) == (65534, pwd.getpwuid(65534).pw_name, process.pid)


async def test_of_a_program_that_is_gone_nothing_is_known(listener: socket.socket):
    process, accepted = start(listener)
    process.kill()
    process.communicate()
    lookup = ProgramLookup()
    with accepted:
        found = await lookup.origin_of(accepted)
    assert (found.pid, found.process) == (None, None)
    assert await lookup.origin_of(accepted) == Origin()
    await lookup.close()
