"""What is said to a service manager that does not listen, and then does."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import time
from pathlib import Path

import pytest

from msocks.transport.descriptor_store import DescriptorStore, take_inherited
from msocks.transport.reactor import Reactor


async def test_a_manager_that_does_not_listen_holds_up_nobody_and_hears_all_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(tmp_path / "notify")
    reactor = Reactor(asyncio.get_running_loop())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert DescriptorStore.of_this_service(reactor) is None  # it is not said to hold any
        monkeypatch.setenv("FDSTORE", "100")
        store = DescriptorStore.of_this_service(reactor)
        assert store is not None
        count = 2000
        for number in range(count):
            read, write = os.pipe()
            store.put(f"flow-{number}", [read, write])
            store.remove(f"flow-{number - 1}")
            os.close(read)
            os.close(write)
        began = time.monotonic()
        store.flush(0.1)
        assert time.monotonic() - began < 1
        heard: list[tuple[str, int]] = []
        while len(heard) < 2 * count:
            try:
                message, rights, _, _ = manager.recvmsg(1000, 1000)
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            passed = array.array("i")
            for _, _, data in rights:
                passed.frombytes(data)
            for descriptor in passed:
                os.close(descriptor)
            heard.append((message.decode(), len(passed)))
        assert heard[::2] == [(f"FDSTORE=1\nFDNAME=flow-{number}\nFDPOLL=0", 2) for number in range(count)]
        assert heard[1::2] == [(f"FDSTOREREMOVE=1\nFDNAME=flow-{number - 1}", 0) for number in range(count)]
        store.close()
    reactor.close()


def test_descriptors_for_another_process_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_FDNAMES", "flow-1")
    assert take_inherited() == {}
