"""Which program of this host is at the other end of a connection over loopback, and whose it is.

The kernel's list of sockets (``/proc/net/tcp``, proc(5)) names account and inode; the process that holds the inode is
looked for among those that this process may see: its own user's, or all where it is root. In a thread, and for many
connections at a time, since a host can have very many processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import pwd
import socket
import sys
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path

import structlog

from msocks.values.origin import Origin

_log = structlog.get_logger("msocks.agent.program_lookup")

_Ends = tuple[str, str]
_SOCKET_LINK = "socket:["


class ProgramLookup:
    """Answers one question after the other; what is asked meanwhile is answered together."""

    def __init__(self) -> None:
        self._asked: list[tuple[_Ends, asyncio.Future[Origin]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def origin_of(self, sock: socket.socket) -> Origin:
        """Whose connection `sock`, accepted on this host, is; nothing is known of one from another host."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Origin] = loop.create_future()
        try:
            ends = _written(sock.getpeername()), _written(sock.getsockname())
        except OSError:
            return Origin()
        self._asked.append((ends, answer))
        if self._worker is None:
            self._worker = loop.create_task(self._answer())
        return await answer

    async def close(self) -> None:
        """Answer nobody any more."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await worker
        for _, answer in self._asked:
            answer.cancel()
        self._asked.clear()

    async def _answer(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, []
            try:
                found = await asyncio.to_thread(find_origins, [ends for ends, _ in asked])
            except Exception:
                _log.exception("program_lookup_failed", remedy="rules about process and user do not match")
                found = [Origin()] * len(asked)
            for (_, answer), origin in zip(asked, found, strict=True):
                if not answer.done():
                    answer.set_result(origin)
        self._worker = None


def find_origins(connections: Sequence[_Ends]) -> list[Origin]:
    """The program of each connection, named by its own and the other end as ``/proc/net/tcp`` writes them. Blocks."""
    wanted = set(connections)
    sockets: dict[_Ends, tuple[int, str]] = {}
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), Path("/proc/net", table).open(encoding="ascii") as lines:
            next(lines, None)
            for line in lines:
                fields = line.split()
                ends = fields[1], fields[2]
                if ends in wanted:
                    sockets[ends] = int(fields[7]), fields[9]
    holders = _holders({inode for _, inode in sockets.values()})
    return [_origin(sockets.get(ends), holders) for ends in connections]


def _origin(found: tuple[int, str] | None, holders: dict[str, int]) -> Origin:
    if found is None:
        return Origin()
    uid, inode = found
    pid = holders.get(inode)
    process = None
    if pid is not None:
        with contextlib.suppress(OSError):
            process = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").rstrip("\n")
    return Origin(process=process, pid=pid, user=user_name(uid), uid=uid)


@functools.lru_cache(maxsize=1024)
def user_name(uid: int) -> str | None:
    """The account's name, as it was when first asked for; None where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _holders(inodes: Iterable[str]) -> dict[str, int]:
    """The process that holds each inode, the youngest of several: a program that was started by another."""
    wanted = {f"{_SOCKET_LINK}{inode}]": inode for inode in inodes if inode != "0"}
    found: dict[str, int] = {}
    if not wanted:
        return found
    for pid in sorted((int(name) for name in os.listdir("/proc") if name.isdecimal()), reverse=True):  # noqa: PTH208
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as descriptors:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    inode = wanted.get(os.readlink(descriptor.path))  # noqa: PTH115 - there are very many
                    if inode is not None:
                        found.setdefault(inode, pid)
        if len(found) == len(wanted):
            break
    return found


def _written(sockaddr: tuple[object, ...]) -> str:
    """A socket address as ``/proc/net/tcp`` and ``tcp6`` write it: 32-bit words in the host's order, then the port."""
    address = ip_address(str(sockaddr[0]).partition("%")[0])
    packed = address.packed
    words = [packed[at : at + 4] for at in range(0, len(packed), 4)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    return f"{b''.join(words).hex().upper()}:{int(str(sockaddr[1])):04X}"
