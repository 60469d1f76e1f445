"""Looks names up with the system's resolver, in threads, so many at a time.

`getaddrinfo` gives addresses in the order of RFC 6724, from the hosts file, DNS and whatever else the host is set up
with. Its answer comes whole, so the resolution delay of RFC 8305 section 3 has nothing to wait for.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address

from msocks.values.endpoint import Address

_MAX_ADDRESSES = 16


class ResolutionError(Exception):
    """The name has no address, or nobody who knows could be asked. The text says which."""


class Resolver:
    """Resolves at most `concurrency` names at the same time; further ones wait their turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop, concurrency: int) -> None:
        self._loop = loop
        # Threads are made as they are needed, and one that hangs in a resolver's own time-out delays no other.
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="resolver")

    async def resolve(self, name: str) -> list[Address]:
        """The addresses of `name`, best first, at most 16.

        Raises:
            ResolutionError: There are none.
        """
        try:
            found = await self._loop.run_in_executor(
                self._threads, socket.getaddrinfo, name, None, 0, socket.SOCK_STREAM
            )
        except (socket.gaierror, UnicodeError) as error:
            text = error.strerror if isinstance(error, socket.gaierror) else str(error)
            raise ResolutionError(f"the name does not resolve: {text}") from None
        # dict: the hosts file may name an address twice.
        addresses = list(dict.fromkeys(_address(*entry) for entry in found))
        return addresses[:_MAX_ADDRESSES]

    def close(self) -> None:
        """Stop; threads that still wait for an answer end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _address(
    family: socket.AddressFamily, _type: socket.SocketKind, _protocol: int, _name: str, sockaddr: tuple[object, ...]
) -> Address:
    text = str(sockaddr[0]).partition("%")[0]
    return IPv4Address(text) if family == socket.AF_INET else IPv6Address(text)
