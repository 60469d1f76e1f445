"""Another version's programs take the place of those that run, in the middle of a transfer: not one packet is lost."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import hatch_build
import pytest
from tests.datapath.bench import REPLY, Owner, read, stands
from tests.datapath.networks import over_veth, splice
from tests.datapath.splice.loading import compiled
from tests.datapath.three_hosts import MOBILE_LINKS, SERVER_LINK

from msocks.datapath.interface import Attachment
from msocks.datapath.splice import libbpf, loader
from msocks.datapath.splice.datapath import SpliceDatapath
from msocks.protocol.leg import DatapathKind
from msocks.transport.reactor import Reactor

BYTES = 60_000_000
UPGRADES = 2
_SO_MAX_PACING_RATE = 47
_RATE = 20_000_000
_TOTAL_RETRANS = struct.Struct("=100xI")  # of struct tcp_info


def changed(directory: Path) -> Path:
    """The same with one instruction more, as a later version would be: the sum of all TTLs."""
    shutil.copytree(hatch_build.ROOT / hatch_build.SPLICE / "bpf", directory / "bpf")
    source = directory / "bpf" / "splice.bpf.c"
    text = source.read_text()
    mark = "\treturn ingress(skb, ETH_HLEN);\n"
    assert mark in text
    source.write_text(text.replace(mark, "\tskb->cb[0] = skb->len;\n" + mark))
    return compiled(source)


def send(sock: socket.socket) -> None:
    sock.settimeout(60)
    sock.sendall(bytes(BYTES))


def receive(sock: socket.socket, got: list[int]) -> None:
    sock.settimeout(60)
    total = 0
    while total < BYTES:
        total += len(sock.recv(1 << 18))
    got.append(total)


def retransmitted(sock: socket.socket) -> int:
    count: int
    (count,) = _TOTAL_RETRANS.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TOTAL_RETRANS.size))
    return count


def lost(network: Any) -> int:
    """Packets that interfaces of the three hosts have dropped, and that did not arrive behind the cable."""
    found = 0
    hosts = network._hosts
    for host in (hosts.mobile, hosts.proxy, hosts.server):
        with host.entered():
            for line in Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]:
                numbers = line.partition(":")[2].split()
                found += int(numbers[3]) + int(numbers[11])
    return found


def ingress_programs(pins: Path) -> set[int]:
    found = set()
    for name in (f"{100 + link}-ingress" for link in (*MOBILE_LINKS, SERVER_LINK)):
        found.add(libbpf.link_of(libbpf.open_pin(pins / "links" / name))[0])
    return found


async def test_programs_are_replaced_between_two_packets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    objects = [loader.OBJECT, changed(tmp_path)]
    reactor = Reactor(asyncio.get_running_loop())
    with over_veth(splice)(reactor) as network:
        datapath = network.datapath
        assert isinstance(datapath, SpliceDatapath)
        mobile, leg = network.mobile_leg()
        server, server_leg = network.server_leg(leg)
        conduit = datapath.open(server_leg, Owner(), resumable=True)
        assert conduit.carriage_for(leg).kind is DatapathKind.SPLICE
        conduit.attach(Attachment(leg, 1, REPLY, 0, 0))
        assert await read(mobile, len(REPLY)) == REPLY
        await stands(server)
        got: list[int] = []
        for sock in (mobile, server):
            sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, _RATE)
        threads = [threading.Thread(target=send, args=(sock,)) for sock in (mobile, server)]
        threads += [threading.Thread(target=receive, args=(sock, got)) for sock in (mobile, server)]
        drops, losses = datapath.tables.drops(), lost(network)
        for thread in threads:
            thread.start()
        seen = [ingress_programs(Path("/sys/fs/bpf/msocks/test"))]
        successors = []
        for number in range(UPGRADES):
            await asyncio.sleep(0.3)
            monkeypatch.setattr(loader, "OBJECT", objects[(number + 1) % 2])
            # As a process that starts where another has been killed: that one lets go of nothing.
            successors.append(splice(reactor))
            seen.append(ingress_programs(Path("/sys/fs/bpf/msocks/test")))
        assert any(thread.is_alive() for thread in threads)
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert got == [BYTES, BYTES]
        assert all(len(programs) == 1 for programs in seen)
        assert len(set.union(*seen)) == UPGRADES + 1
        assert [retransmitted(sock) for sock in (mobile, server)] == [0, 0]
        assert lost(network) == losses
        assert datapath.tables.drops() == drops
        conduit.close(reset=True)
        for successor in successors:
            successor.close()
        mobile.close()
        server.close()
    reactor.close()
