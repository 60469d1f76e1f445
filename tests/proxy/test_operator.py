"""What the operator sees and does while the proxy runs: sessions, users, limits, stopping."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.own_network import own_network
from tests.proxy.conftest import ANY_PORT, RunningProxy, StartProxy, eventually
from tests.proxy.mobile_node import Server, dial, read_exactly, receive, reset, send

from msocks.errors import ConfigurationError, EndReason
from msocks.protocol.control import Goodbye, RefusalCode, Refused, SessionEnded
from msocks.protocol.leg import LegStatus
from msocks.proxy import datapath_choice, session_registry
from msocks.proxy.config import DatapathChoice, ProxyConfig, ProxyLimits
from msocks.proxy.listener import ListenError
from msocks.proxy.server import Proxy
from msocks.session.byte_budget import SHARE_BYTES, ByteBudget
from msocks.store.administration import remove_user
from msocks.store.running_proxy import ProxyNotRunning, sessions, tell_users_changed
from msocks.store.state_directory import StateDirectory
from msocks.values.endpoint import Endpoint
from msocks.values.ids import SessionId

RELAY = DatapathChoice.RELAY


async def shown(proxy: RunningProxy) -> list[dict]:
    return await asyncio.to_thread(sessions, proxy.state)


async def test_sessions_are_shown(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    await send(leg.sock, b"four")
    await read_exactly(remote, 4)
    await send(remote, b"sixsix")
    await read_exactly(leg.sock, 6)
    (entry,) = await shown(proxy)
    assert 0 <= entry.pop("age") < 5
    assert entry == {
        "id": session.hex(),
        "user": "alice",
        "destination": str(server.endpoint),
        "state": "live",
        "datapath": "relay",
        "datapath_reason": "chosen by operator",
        "generation": 1,
        "bytes_up": 4,
        "bytes_down": 6,
        "packets_up": None,
        "packets_down": None,
        "dropped": None,
        "idle": None,
        "client": str(Endpoint.from_sockaddr(leg.sock.getsockname())),
        "durable": False,
    }
    reset(leg.sock)
    await eventually(lambda: bool(proxy.events("session_parked")))
    assert [entry["state"] for entry in await shown(proxy)] == ["parked"]
    await node.close_session(session, 1)
    assert await shown(proxy) == []


async def test_the_admin_socket_is_the_owners_alone(proxy: RunningProxy):
    socket_path = StateDirectory(proxy.state).admin_socket
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(proxy.state.stat().st_mode) == 0o700


async def test_a_state_directory_may_lie_deep(start_proxy: StartProxy, tmp_path: Path):
    state = tmp_path / ("d" * 100) / "state"
    proxy = await start_proxy(state=state)
    assert await shown(proxy) == []


async def test_a_user_who_is_added_can_come_at_once(proxy: RunningProxy):
    for name in ("alice", "bob"):
        node = await proxy.node(name)
        assert (await node.query(SessionId.generate())).status is LegStatus.UNKNOWN_SESSION


async def test_a_user_who_is_removed_is_gone_at_once(proxy: RunningProxy, server: Server):
    alice, bob = await proxy.node("alice"), await proxy.node("bob")
    session, leg = await alice.open_session(server.endpoint)
    remote = await server.accept()
    _, other = await bob.open_session(server.endpoint)
    other_remote = await server.accept()
    await asyncio.to_thread(remove_user, proxy.state, "alice")
    for sock in (leg.sock, remote):
        with pytest.raises(ConnectionResetError):
            await receive(sock)
    assert await alice.channels[0].hear(SessionEnded) == SessionEnded(session, EndReason.USER_REMOVED)
    assert (await alice.channels[0].hear(Refused)).code is RefusalCode.USER_REMOVED
    assert (await alice.query(session)).status is LegStatus.UNKNOWN_ASSOCIATION
    again = await alice.open_channel()
    assert (await again.hear(Refused)).code is RefusalCode.AUTHENTICATION
    await send(other_remote, b"undisturbed")
    assert await read_exactly(other.sock, 11) == b"undisturbed"


async def test_a_user_who_gets_a_new_link_is_another_one(proxy: RunningProxy, server: Server, monkeypatch):
    """Also when the proxy looks only after the second of the two commands."""
    alice = await proxy.node("alice")
    _, leg = await alice.open_session(server.endpoint)
    monkeypatch.setattr("msocks.store.administration.tell_users_changed", lambda _: False)
    await asyncio.to_thread(remove_user, proxy.state, "alice")
    await proxy.add_user("alice")
    assert await asyncio.to_thread(tell_users_changed, StateDirectory(proxy.state))
    with pytest.raises(ConnectionResetError):
        await receive(leg.sock)


async def test_changes_are_found_without_being_told(proxy: RunningProxy, server: Server, monkeypatch):
    alice = await proxy.node("alice")
    _, leg = await alice.open_session(server.endpoint)
    monkeypatch.setattr("msocks.store.administration.tell_users_changed", lambda _: False)
    await asyncio.to_thread(remove_user, proxy.state, "alice")
    with pytest.raises(ConnectionResetError):
        await receive(leg.sock)


async def test_the_sessions_of_a_user_are_limited(proxy: RunningProxy, server: Server):
    node = await proxy.node(link=await proxy.add_user("alice", max_sessions=2))
    assert node.keys.max_sessions == 2
    first, _ = await node.open_session(server.endpoint)
    await node.open_session(server.endpoint)
    leg = await node.connect(SessionId.generate(), server.endpoint)
    assert (await leg.reply()).status is LegStatus.LIMIT
    assert leg.verified
    await node.close_session(first, 1)
    await node.open_session(server.endpoint)
    assert len(proxy.events("session_limit")) == 1


async def test_a_plain_client_over_the_limit_is_told_of_a_failure(start_proxy: StartProxy, server: Server):
    proxy = await start_proxy(open=True, limits=ProxyLimits(sessions=1))
    request = b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + server.endpoint.port.to_bytes(2, "big")
    first, second = await dial(proxy.endpoint), await dial(proxy.endpoint)
    await send(first, request)
    assert (await read_exactly(first, 12))[3] == 0x00
    await send(second, request)
    assert (await read_exactly(second, 12))[3] == 0x01
    first.close()
    second.close()


async def test_limits_hold_for_all_users_together(start_proxy: StartProxy, server: Server):
    proxy = await start_proxy(limits=ProxyLimits(sessions=1))
    alice, bob = await proxy.node("alice"), await proxy.node("bob")
    await alice.open_session(server.endpoint)
    leg = await bob.connect(SessionId.generate(), server.endpoint)
    assert (await leg.reply()).status is LegStatus.LIMIT


async def test_what_is_held_for_one_user_is_bounded_and_everything_arrives(
    start_proxy: StartProxy, server: Server, monkeypatch: pytest.MonkeyPatch
):
    budgets: list[ByteBudget] = []

    class Noted(ByteBudget):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            budgets.append(self)

    monkeypatch.setattr(session_registry, "ByteBudget", Noted)
    proxy = await start_proxy(limits=ProxyLimits(held_mib=64, held_mib_per_user=1), datapath=DatapathChoice.RELAY)
    alice = await proxy.node("alice")
    legs, sending = [], []
    for _ in range(3):
        _, leg = await alice.open_session(server.endpoint)
        remote = await server.accept()
        sending.append(asyncio.create_task(send_all(remote, bytes(4_000_000))))
        legs.append(leg.sock)
    _, users = budgets
    await eventually(lambda: users.held >= 1 << 20)
    await asyncio.sleep(0.2)
    assert users.held <= (1 << 20) + 3 * SHARE_BYTES
    bob = await proxy.node("bob")
    await bob.open_session(server.endpoint)
    assert budgets[2].left == 1 << 20, "each user has a budget of his own"
    for sock in legs:
        assert len(await read_exactly(sock, 4_000_000)) == 4_000_000
    await asyncio.gather(*sending)


async def send_all(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def test_stopping_lets_sessions_end_and_then_resets_them(start_proxy: StartProxy, server: Server):
    proxy = await start_proxy(stop_grace_s=0.3)
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    idle = await dial(proxy.endpoint)
    stopping = asyncio.create_task(proxy.proxy.stop())
    assert await receive(idle) == b""
    idle.close()
    await send(remote, b"still served")
    assert await read_exactly(leg.sock, 12) == b"still served"
    with pytest.raises(ConnectionRefusedError):
        await dial(node.proxy)
    for sock in (remote, leg.sock):
        with pytest.raises(ConnectionResetError):
            await receive(sock)
    assert await node.channels[0].hear(SessionEnded) == SessionEnded(session, EndReason.PROXY_FAILED)
    await node.channels[0].hear(Goodbye)
    node.channels[0].close()
    await asyncio.wait_for(stopping, 2)
    await asyncio.wait_for(proxy.proxy.serve(), 1)
    assert not (proxy.state / "admin.sock").exists()


async def test_an_idle_proxy_stops_at_once(start_proxy: StartProxy):
    proxy = await start_proxy(stop_grace_s=30)
    await asyncio.wait_for(proxy.proxy.stop(), 1)


async def test_one_proxy_at_a_time_has_a_state_directory(proxy: RunningProxy):
    second = Proxy(ProxyConfig(listen=(ANY_PORT,), state=proxy.state, datapath=RELAY))
    with pytest.raises(ConfigurationError, match="another proxy runs"):
        await second.start()
    assert await shown(proxy) == []


async def test_a_port_that_is_taken_is_named(proxy: RunningProxy, tmp_path: Path):
    second = Proxy(ProxyConfig(listen=(proxy.endpoint,), state=tmp_path / "second", datapath=RELAY))
    with pytest.raises(ListenError, match=f"{proxy.endpoint}.*another program uses the port"):
        await second.start()


async def test_a_failed_start_leaves_nothing_open(proxy: RunningProxy, tmp_path: Path):
    free = Proxy(ProxyConfig(listen=(ANY_PORT, proxy.endpoint), state=tmp_path / "second", datapath=RELAY))
    with pytest.raises(ListenError):
        await free.start()
    third = Proxy(ProxyConfig(listen=(ANY_PORT,), state=tmp_path / "second", datapath=RELAY))
    await third.start()
    await third.stop()


async def test_where_the_splice_cannot_be_had_it_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # A directory that is on no BPF file system.
    monkeypatch.setattr(datapath_choice, "_BPF_FILE_SYSTEM", tmp_path / "bpf")
    config = ProxyConfig(listen=(ANY_PORT,), state=tmp_path / "state", datapath=DatapathChoice.SPLICE)
    with own_network(), pytest.raises(ConfigurationError, match=r"the splice cannot be had.*doctor"):
        await Proxy(config).start()


async def test_both_families_are_served_on_their_wildcards(start_proxy: StartProxy):
    both = await start_proxy(listen=(Endpoint.parse("[::]:0"),))
    for host in ("127.0.0.1", "::1"):
        (await dial(Endpoint.of(host, both.endpoint.port))).close()


async def test_wildcards_of_both_families_share_a_port(start_proxy: StartProxy, tmp_path: Path):
    first = await start_proxy(listen=(Endpoint.parse("0.0.0.0:0"),), state=tmp_path / "one")
    port = first.endpoint.port
    await first.proxy.stop()
    both = (Endpoint.of("::", port), Endpoint.of("0.0.0.0", port))
    proxy = await start_proxy(listen=both, state=tmp_path / "two")
    assert set(proxy.proxy.endpoints) == set(both)


async def test_a_name_to_listen_on_is_resolved(start_proxy: StartProxy):
    proxy = await start_proxy(listen=(Endpoint.parse("localhost:0"),))
    assert all(endpoint.address is not None and endpoint.address.is_loopback for endpoint in proxy.proxy.endpoints)


def test_without_a_proxy_the_command_says_so(tmp_path: Path):
    set_up = StateDirectory.prepare(tmp_path / "state")
    assert tell_users_changed(set_up) is False
    with pytest.raises(ConfigurationError, match="not the state directory"):
        sessions(set_up.path)
    set_up.users.touch()
    with pytest.raises(ProxyNotRunning, match="no proxy runs"):
        sessions(set_up.path)


PROGRAM = """
import sys
from pathlib import Path
from typing import Any
from msocks.proxy.config import DatapathChoice, ProxyConfig
from msocks.proxy.daemon import run
from msocks.values.endpoint import Endpoint
config = ProxyConfig(
    listen=(Endpoint.parse("127.0.0.1:0"),), state=Path(sys.argv[1]), stop_grace_s=0, datapath=DatapathChoice.RELAY
)
run(config, lambda: print("ready", flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_says_ready_and_stops_when_asked(tmp_path: Path, number: signal.Signals):
    notifications = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(notifications))
        manager.settimeout(5)
        environment = os.environ | {"NOTIFY_SOCKET": str(notifications)}
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "state")]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "ready\n"
            assert manager.recv(100) == b"READY=1"
            process.send_signal(number)
            assert manager.recv(100) == b"STOPPING=1"
            assert process.wait(5) == 0
            assert process.stdout.read() == ""
            assert "listening" in process.stderr.read()
