"""A local service that peers reach at a port of the proxy: what they send goes to it, and its answers back to them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import structlog

from msocks.client.coupled_socket import CoupledSocket
from msocks.client.events import Ended, Event
from msocks.client.node import MobileNode
from msocks.errors import MsocksError
from msocks.protocol.inbound import Incoming
from msocks.session.mobile_effects import SessionState
from msocks.values.endpoint import Endpoint

_log = structlog.get_logger("msocks.client.published_service")


@dataclass(frozen=True, slots=True)
class Accepted:
    """A peer has connected.

    Attributes:
        peer: Its address.
        link: What carries the connection first.
    """

    peer: Endpoint
    link: str | None


Report: TypeAlias = Callable[[str, Accepted | Event], None]
"""Is told of a session, by its id, what happens; `Ended` comes last."""


class PublishedService:
    """See the module. Any number of connections at once."""

    def __init__(self, node: MobileNode, port: int, service: Endpoint, report: Report) -> None:
        """Ask the proxy for `port`, 0 for any that the user may have."""
        self._node = node
        self._service = service
        self._report = report
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._coupled: set[CoupledSocket] = set()
        self._wanted = node.inbound.listen(port, self._on_incoming, self._news.set)

    async def opened(self) -> Endpoint:
        """Wait until the proxy listens; returns where. Raises ListenError, AuthenticationError."""
        await self._wanted.opened.wait()
        if self._wanted.error is not None or self._wanted.bound is None:
            raise self._wanted.error or MsocksError("the proxy does not listen")
        return self._wanted.bound

    async def serve(self) -> None:
        """Until cancelled; then connections are reset. Raises ListenError when the proxy has taken the port back."""
        try:
            while self._wanted.error is None:
                self._news.clear()
                await self._news.wait()
            raise self._wanted.error
        finally:
            self._node.inbound.close(self._wanted)
            for task in self._tasks:
                task.cancel()
            for coupled in list(self._coupled):
                coupled.abort()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _on_incoming(self, incoming: Incoming) -> None:
        task = asyncio.get_running_loop().create_task(self._carry(incoming))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, incoming: Incoming) -> None:
        try:
            sock = await self._reach()
        except OSError as error:
            _log.warning(
                "service_unreachable",
                service=str(self._service),
                reason=error.strerror or str(error),
                remedy="start the service, or name the port at which it listens",
            )
            self._node.close_session(incoming.session, 1)  # the peer gets the reset that it would have got here
            return
        coupled = CoupledSocket(self._node, sock, incoming.peer, incoming)
        try:
            await self._node.connect(coupled.connection)
        except MsocksError:
            return  # it is over at the proxy: the peer has gone, or has waited too long
        except BaseException:
            coupled.abort()
            raise
        if coupled.connection.state is SessionState.ENDED:  # before this task had its turn
            return
        session, loop = coupled.connection.session.hex(), self._node.reactor.loop

        def tell(event: Event) -> None:
            loop.call_soon(self._report, session, event)
            if isinstance(event, Ended):
                self._coupled.discard(coupled)

        self._coupled.add(coupled)
        self._report(session, Accepted(incoming.peer, coupled.connection.link))
        coupled.listener = tell
        coupled.start()

    async def _reach(self) -> socket.socket:
        """A connection to the service. Raises OSError."""
        loop = asyncio.get_running_loop()
        failure: OSError | None = None
        for family, kind, protocol, _, address in await loop.getaddrinfo(
            str(self._service.host), self._service.port, type=socket.SOCK_STREAM
        ):
            sock = socket.socket(family, kind, protocol)
            sock.setblocking(False)
            try:
                await loop.sock_connect(sock, address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
        raise failure or OSError("it has no address")
