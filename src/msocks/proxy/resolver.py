"""Looks names up with the system's resolver, in threads, so many at a time.

`getaddrinfo` gives addresses in the order of RFC 6724, from the hosts file, DNS and whatever else the host is set up
with. Its answer comes whole, so the resolution delay of RFC 8305 section 3 has nothing to wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from ipaddress import IPv4Address, IPv6Address

from msocks.values.endpoint import Address

_MAX_ADDRESSES = 16


class ResolutionError(Exception):
    """The name has no address, or nobody who knows could be asked. The text says which."""


class Resolver:
    """Resolves at most `concurrency` names at the same time; further ones wait their turn.

    A thread that a resolver keeps waiting counts until it comes back, also when nobody waits for its answer any more,
    and does not keep the process from ending.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, concurrency: int) -> None:
        self._loop = loop
        self._free = asyncio.Semaphore(concurrency)

    async def resolve(self, name: str) -> list[Address]:
        """The addresses of `name`, best first, at most 16.

        Raises:
            ResolutionError: There are none.
        """
        answer: asyncio.Future[list[Address]] = self._loop.create_future()
        await self._free.acquire()
        threading.Thread(target=self._ask, args=(name, answer), name="resolver", daemon=True).start()
        return await answer

    def _ask(self, name: str, answer: asyncio.Future[list[Address]]) -> None:
        outcome: list[Address] | ResolutionError
        try:
            outcome = _look_up(name)
        except (socket.gaierror, UnicodeError) as error:
            text = error.strerror if isinstance(error, socket.gaierror) else str(error)
            outcome = ResolutionError(f"the name does not resolve: {text}")
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._answered, answer, outcome)

    def _answered(self, answer: asyncio.Future[list[Address]], outcome: list[Address] | ResolutionError) -> None:
        self._free.release()
        if answer.done():
            return  # nobody waits any more
        if isinstance(outcome, ResolutionError):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)


def _look_up(name: str) -> list[Address]:
    found: dict[Address, None] = {}  # the hosts file may name an address twice
    for family, _, _, _, sockaddr in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
        text = str(sockaddr[0]).partition("%")[0]
        found[IPv4Address(text) if family == socket.AF_INET else IPv6Address(text)] = None
    return list(found)[:_MAX_ADDRESSES]
