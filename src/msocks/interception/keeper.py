"""The keeper of a run: a process beside the program that has the privilege, holds the hooks, and asks the agent.

It ends when no process of the run's control group lives any more, and takes the group with it. When it is killed the
hooks go with it, and the next run sweeps the group away.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network

from msocks.interception.agent_link import AgentLink
from msocks.interception.cgroup import RunGroup
from msocks.interception.hooks import Hooks
from msocks.interception.layout import Attempt, Settings
from msocks.interception.local_addresses import AddressNews, local_addresses
from msocks.interception.messages import Connect
from msocks.interception.refusal import CannotIntercept, Refusals
from msocks.interception.resolver import Resolver
from msocks.values.endpoint import Endpoint

# Attempts that are remembered until they are answered, or sent again.
_MOST_ATTEMPTS = 4096
# Without an agent, look for one so often.
_AGENT_PAUSE_MS = 1000


class Keeper:
    """One run: made by the process that will become the program, carried on by the keeper's own (see `Keeper.run`)."""

    def __init__(
        self,
        link: AgentLink,
        excluded: Iterable[IPv4Network | IPv6Network],
        *,
        names: bool = False,
        no_udp: bool = False,
    ) -> None:
        """Make the control group and attach the hooks; nothing is redirected before a process is in the group.

        Args:
            link: The registration; owned, also where this raises.
            excluded: Destinations that are left alone, besides the proxy's addresses and this host's own.
            names: Whether names are resolved by the proxy.
            no_udp: Whether the program may use no UDP, except over loopback.

        Raises:
            CannotIntercept: The privilege is missing, or the host lacks something.
        """
        self._link = link
        # What was asked, by socket and SYN; and what the answer was, once it is known.
        self._asked: dict[int, tuple[Attempt, int | None]] = {}
        self._resolver: Resolver | None = None
        self._no_udp = no_udp
        self._excluded: set[IPv4Network | IPv6Network] = set()
        self._own: set[IPv4Network | IPv6Network] = set()
        self._stack = contextlib.ExitStack()
        self._stack.callback(link.close)
        try:
            self.group = RunGroup()
            self._stack.callback(self.group.close)
            self._refusals = Refusals()
            self._stack.callback(self._refusals.close)
            if names:
                self._resolver = Resolver()
                self._stack.callback(self._resolver.close)
            self._hooks = Hooks(self.group.fd, udp=names or no_udp)
            self._stack.callback(self._hooks.close)
            self._news = AddressNews()
            self._stack.callback(self._news.close)
            self._leave_alone(excluded)
            self._leave_alone_own()
            self._configure()
        except BaseException:
            self._stack.close()
            raise

    def run(self) -> None:
        """Serve until the control group is empty, then remove it."""
        poll = select.poll()
        hooks, news = self._hooks.fileno(), self._news.fileno()
        self.group.watch(poll)
        poll.register(hooks, select.POLLIN)
        poll.register(news, select.POLLIN)
        if self._resolver is not None:
            for descriptor in self._resolver.descriptors:
                poll.register(descriptor, select.POLLIN)
        try:
            while self.group.is_populated:
                agent = self._link.fileno()
                if agent is not None:
                    poll.register(agent, select.POLLIN)
                ready = {descriptor for descriptor, _ in poll.poll(None if agent is not None else _AGENT_PAUSE_MS)}
                if agent is not None:
                    poll.unregister(agent)
                if news in ready:
                    self._news.drain()
                    with contextlib.suppress(CannotIntercept):  # what is too much goes through the agent
                        self._leave_alone_own()
                if agent in ready:
                    self._hear()
                if self._resolver is not None and not ready.isdisjoint(self._resolver.descriptors):
                    self._resolver.serve()
                if hooks in ready:
                    self._hooks.attempts(self._on_attempt)
                if not self._link.is_connected and self._link.reconnect():
                    with contextlib.suppress(CannotIntercept):
                        self._configure()
        finally:
            self.close()

    def close(self) -> None:
        """Detach the hooks, end the registration, and remove the group where it is empty."""
        self._stack.close()

    def _configure(self) -> None:
        ready = self._link.ready
        resolver = (0, 0) if self._resolver is None else self._resolver.ports
        self._hooks.configure(Settings((ready.port4, ready.port6), resolver, self._no_udp))
        self._leave_alone(address for text in ready.proxy for address in _addresses_of(Endpoint.parse(text)))

    def _leave_alone_own(self) -> None:
        """This host's addresses, as they are now: another network may give what was ours to somebody else."""
        now = local_addresses()
        self._hooks.redirect_again(self._own - now - self._excluded)
        self._hooks.leave_alone(now - self._own)
        self._own = now

    def _leave_alone(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        fresh = {*networks} - self._excluded
        self._hooks.leave_alone(fresh)
        self._excluded |= fresh

    def _on_attempt(self, attempt: Attempt) -> None:
        earlier = self._asked.pop(attempt.cookie, None)
        answer = earlier[1] if earlier is not None and earlier[0].sequence == attempt.sequence else None
        is_new = earlier is None or earlier[0].sequence != attempt.sequence
        self._asked[attempt.cookie] = attempt, answer
        if len(self._asked) > _MOST_ATTEMPTS:
            self._asked.pop(next(iter(self._asked)))
        if answer is not None:  # it was lost: the socket was busy, for instance
            self._tell(attempt, answer)
        elif is_new:
            try:
                destination = str(self._named(attempt.destination))
            except LookupError:  # an address of the pool that stands for no name any more
                self._asked[attempt.cookie] = attempt, errno.EHOSTUNREACH
                self._tell(attempt, errno.EHOSTUNREACH)
                return
            question = Connect(
                attempt.cookie, str(attempt.local), destination, attempt.pid, attempt.uid, attempt.process
            )
            if not self._link.ask(question):
                del self._asked[attempt.cookie]  # the SYN comes again in a second, and with it the question
            self._check_agent()

    def _named(self, destination: Endpoint) -> Endpoint:
        """The destination with the name that its address stands for, where it does."""
        if self._resolver is None or destination.address is None:
            return destination
        name = self._resolver.pool.name(destination.address)
        return destination if name is None else Endpoint(name, destination.port)

    def _hear(self) -> None:
        for refuse in self._link.hear():
            attempt, _ = self._asked.get(refuse.cookie, (None, None))
            if attempt is not None:
                self._asked[refuse.cookie] = attempt, refuse.errno
                self._tell(attempt, refuse.errno)
        self._check_agent()

    def _check_agent(self) -> None:
        """Where the agent is gone, nobody will answer what was asked. A granted one ignores it."""
        if not self._link.is_connected:
            for attempt, answer in self._asked.values():
                if answer is None:
                    self._tell(attempt, errno.ECONNREFUSED)
            self._asked.clear()

    def _tell(self, attempt: Attempt, error: int) -> None:
        self._refusals.refuse(attempt, self._port(attempt), error)

    def _port(self, attempt: Attempt) -> int:
        local = attempt.local.address
        return self._link.ready.port6 if local is not None and local.version == 6 else self._link.ready.port4


def _addresses_of(endpoint: Endpoint) -> Iterable[IPv4Network | IPv6Network]:
    """Each as a network of one; none where a name has none now."""
    with contextlib.suppress(OSError):
        for *_, sockaddr in socket.getaddrinfo(str(endpoint.host), endpoint.port, type=socket.SOCK_STREAM):
            yield ip_network(str(Endpoint.from_sockaddr(sockaddr).host))
