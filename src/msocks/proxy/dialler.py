"""Opens server legs: resolves the destination, applies the rules, connects, and puts what fails into reply codes."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

from msocks.protocol.socks5_wire import ReplyCode
from msocks.proxy.destination_rules import DestinationRules, Verdict
from msocks.proxy.happy_eyeballs import ConnectRace, Preparation, interleave
from msocks.proxy.resolver import ResolutionError, Resolver
from msocks.transport.deadlines import Deadlines
from msocks.transport.kernel import reset_on_close
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Address, Endpoint

# RFC 1928 knows no time-out; "TTL expired" is what it has for a packet that did not get there.
_REPLY_CODES = {
    errno.ECONNREFUSED: ReplyCode.CONNECTION_REFUSED,
    errno.ECONNRESET: ReplyCode.CONNECTION_REFUSED,
    errno.ETIMEDOUT: ReplyCode.TTL_EXPIRED,
    errno.EHOSTUNREACH: ReplyCode.HOST_UNREACHABLE,
    errno.EHOSTDOWN: ReplyCode.HOST_UNREACHABLE,
    errno.ENETUNREACH: ReplyCode.NETWORK_UNREACHABLE,
    errno.ENETDOWN: ReplyCode.NETWORK_UNREACHABLE,
    # The host's own packet filter.
    errno.EPERM: ReplyCode.NOT_ALLOWED,
    errno.EACCES: ReplyCode.NOT_ALLOWED,
}


@dataclass(frozen=True, slots=True)
class DialFailure:
    """Why there is no server leg.

    Attributes:
        reply_code: For the client.
        reason: For the log.
    """

    reply_code: ReplyCode
    reason: str


DialResult: TypeAlias = socket.socket | DialFailure


class Dial:
    """One attempt to reach a destination. `cancel` ends it, and nobody is told."""

    __slots__ = ("_dialler", "_on_done", "_prepare", "_race", "_task", "destination")

    def __init__(
        self,
        dialler: Dialler,
        destination: Endpoint,
        prepare: Preparation,
        on_done: Callable[[DialResult], None],
    ) -> None:
        self.destination = destination
        self._dialler = dialler
        self._prepare = prepare
        self._on_done: Callable[[DialResult], None] | None = on_done
        self._race: ConnectRace | None = None
        self._task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Give up silently."""
        self._on_done = None
        self._dialler.ended(self)
        self._end()

    # -- for the dialler --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; the outcome comes later, never within this call."""
        address = self.destination.address
        if address is None:
            self._task = self._dialler.reactor.loop.create_task(self._resolve(str(self.destination.host)))
        else:
            self._race_to([address])

    def expire(self) -> None:
        """The time is up."""
        stage = "connect" if self._race is not None else "resolve"
        self._finish(DialFailure(ReplyCode.TTL_EXPIRED, f"timed out ({stage})"))

    async def _resolve(self, name: str) -> None:
        try:
            addresses = await self._dialler.resolver.resolve(name)
        except ResolutionError as error:
            self._task = None
            self._finish(DialFailure(ReplyCode.HOST_UNREACHABLE, str(error)))
            return
        self._task = None
        self._race_to(addresses)

    def _race_to(self, addresses: Sequence[Address]) -> None:
        port = self.destination.port
        allowed: list[Address] = []
        reason = ""
        for address in addresses:
            # An IPv4-mapped address is another spelling of an IPv4 address; connect to that.
            if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
                address = address.ipv4_mapped
            refusal = self._dialler.refusal(address, port)
            if refusal is None:
                allowed.append(address)
            else:
                reason = reason or f"{address}: {refusal}"
        if not allowed:
            self._dialler.reactor.call_soon(lambda: self._finish(DialFailure(ReplyCode.NOT_ALLOWED, reason)))
            return
        order = interleave(allowed) if len(allowed) > 1 else allowed
        self._race = ConnectRace(self._dialler.reactor, order, port, self._prepare, self._on_raced)

    def _on_raced(self, outcome: socket.socket | OSError) -> None:
        self._race = None
        if isinstance(outcome, OSError):
            code = _REPLY_CODES.get(outcome.errno or 0, ReplyCode.GENERAL_FAILURE)
            self._finish(DialFailure(code, outcome.strerror or str(outcome)))
        else:
            self._finish(outcome)

    def _finish(self, result: DialResult) -> None:
        on_done, self._on_done = self._on_done, None
        self._dialler.ended(self)
        if self._race is not None or self._task is not None:
            self._end()
        if on_done is not None:
            on_done(result)
        elif isinstance(result, socket.socket):
            self._dialler.reactor.unwatch(result.fileno())
            reset_on_close(result)
            result.close()

    def _end(self) -> None:
        if self._race is not None:
            self._race.cancel()
            self._race = None
        if self._task is not None:
            self._task.cancel()
            self._task = None


class Dialler:
    """Makes server legs.

    `own_endpoints` are the proxy's listeners, wildcards included: no destination, as a loop would eat connections.
    """

    def __init__(
        self,
        reactor: Reactor,
        rules: DestinationRules,
        *,
        timeout_s: float,
        resolutions: int,
        own_endpoints: Callable[[], Sequence[Endpoint]],
    ) -> None:
        self.reactor = reactor
        self.resolver = Resolver(reactor.loop, resolutions)
        self._rules = rules
        self._own_endpoints = own_endpoints
        self._waiting: Deadlines[Dial] = Deadlines(reactor.loop, timeout_s, Dial.expire)

    def dial(self, destination: Endpoint, prepare: Preparation, on_done: Callable[[DialResult], None]) -> Dial:
        """Begin to connect to `destination`; `on_done` gets the connected non-blocking socket, or the failure.

        `prepare` gets every socket before it connects, and where to: there may be several, of which one remains.
        The socket is still watched by the reactor, so that its next owner takes the watch over.
        """
        dial = Dial(self, destination, prepare, on_done)
        self._waiting.add(dial)
        dial.start()
        return dial

    def refusal(self, address: Address, port: int) -> str | None:
        """Why the proxy does not connect to an address; None where it does."""
        if port == 0:
            return "port 0 is no destination"
        verdict = self._rules.judge(address)
        if verdict is not Verdict.ALLOWED:
            return verdict.value
        for own in self._own_endpoints():
            if own.port == port and (own.address == address or (_is_wildcard(own) and _is_local(address))):
                return "this is the proxy itself"
        return None

    def ended(self, dial: Dial) -> None:
        """A dial needs no deadline any more."""
        self._waiting.discard(dial)

    def close(self) -> None:
        """Give up all that is under way."""
        for dial in self._waiting.take_all():
            dial.cancel()


def _is_wildcard(endpoint: Endpoint) -> bool:
    return endpoint.address is not None and endpoint.address.is_unspecified


def _is_local(address: Address) -> bool:
    """Whether the address is one of this host's: only those can be bound."""
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((str(address), 0))
        except OSError:
            return False
    return True
