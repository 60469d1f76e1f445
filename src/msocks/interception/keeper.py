"""The keeper of a control group: has the privilege, holds the hooks, and asks the agent.

That of a run is a process beside the program. It ends when no process of the run's control group lives any more, and
takes the group with it. When it is killed the hooks go with it, and the next run sweeps the group away.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Collection, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network

from msocks.interception.agent_link import AgentLink
from msocks.interception.cgroup import Group, RunGroup
from msocks.interception.hooks import Hooks
from msocks.interception.layout import Attempt, Settings
from msocks.interception.local_addresses import AddressNews, local_addresses
from msocks.interception.messages import Connect, Reach
from msocks.interception.refusal import CannotIntercept, Refusals
from msocks.interception.resolver import Resolver
from msocks.interception.serving import serve_until
from msocks.values.endpoint import Endpoint

# Attempts that are remembered until they are answered, or sent again.
_MOST_ATTEMPTS = 4096


class Keeper:
    """One run: made by the process that will become the program, carried on by the keeper's own (see `Keeper.run`).

    Or a whole host, where the group is given.
    """

    def __init__(
        self,
        link: AgentLink,
        excluded: Iterable[IPv4Network | IPv6Network],
        *,
        names: bool = False,
        no_udp: bool = False,
        group: Group | None = None,
        near: Callable[[], set[IPv4Network | IPv6Network]] = local_addresses,
        lets_go: bool = False,
        lets_go_in_outage: bool = False,
    ) -> None:
        """Make the control group and attach the hooks; nothing is redirected before a process is in the group.

        Args:
            link: The registration; owned, also where this raises.
            excluded: Destinations that are left alone, besides the proxy's addresses and this host's own.
            names: Whether names are resolved by the proxy.
            no_udp: Whether the program may use no UDP, except over loopback.
            group: In place of one of its own; owned, also where this raises.
            near: What is left alone as long as this host has its addresses of now.
            lets_go: Whether nothing is redirected while there is no agent, or it hangs (if `link` asks for `Reach`).
            lets_go_in_outage: Whether nothing is redirected while the agent says that it reaches nobody, either.

        Raises:
            CannotIntercept: The privilege is missing, or the host lacks something.
        """
        self._link = link
        # What was asked, by socket and SYN; and what the answer was, once it is known.
        self._asked: dict[int, tuple[Attempt, int | None]] = {}
        self._resolver: Resolver | None = None
        self._no_udp = no_udp
        self._excluded: set[IPv4Network | IPv6Network] = set()
        self._near = near
        self._near_now: set[IPv4Network | IPv6Network] = set()
        self._lets_go = lets_go
        self._lets_go_in_outage = lets_go_in_outage
        self._reaches = True
        self._hangs = False
        self._stack = contextlib.ExitStack()
        self._stack.callback(link.close)
        try:
            self.group = RunGroup() if group is None else group
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
            self._leave_alone_near()
            self._configure()
        except BaseException:
            self._stack.close()
            raise

    def run(self) -> None:
        """Serve until the control group is empty, then remove it."""
        try:
            serve_until([self], lambda: not self.group.is_populated, self.group.watch)
        finally:
            self.close()

    @property
    def descriptors(self) -> set[int]:
        """To be watched for reading; `serve` wants to hear which are ready."""
        found = {self._hooks.fileno(), self._news.fileno()}
        if self._resolver is not None:
            found |= self._resolver.descriptors
        if (agent := self._link.fileno()) is not None:
            found.add(agent)
        return found

    @property
    def looks_for_agent(self) -> bool:
        """Whether `serve` shall be called every second, though nothing is ready."""
        return self._lets_go or not self._link.is_connected

    def serve(self, ready: Collection[int]) -> None:
        """Do what there is to do."""
        if self._news.fileno() in ready:
            self._news.drain()
            with contextlib.suppress(CannotIntercept):  # what is too much goes through the agent
                self._leave_alone_near()
        if self._link.fileno() in ready:
            self._hear()
        if self._resolver is not None and not self._resolver.descriptors.isdisjoint(ready):
            self._resolver.serve()
        if self._hooks.fileno() in ready:
            self._hooks.attempts(self._on_attempt)
        if not self._link.is_connected and self._link.reconnect():
            self._reaches = True
            with contextlib.suppress(CannotIntercept):
                self._configure()
        if self._lets_go and self._link.is_connected and self._link.hangs is not self._hangs:
            self._hangs = not self._hangs
            self._switch()
            if self._hangs:
                self._refuse_unanswered()

    def close(self) -> None:
        """Detach the hooks, end the registration, and remove the group where it is empty."""
        self._stack.close()

    def _configure(self) -> None:
        """What the agent has said at the beginning."""
        self._switch()
        self._leave_alone(networks_of(self._link.ready.proxy))

    def _switch(self) -> None:
        """Redirect, or do not."""
        ready = self._link.ready
        resolver = (0, 0) if self._resolver is None else self._resolver.ports
        reaches = self._reaches or not self._lets_go_in_outage
        enabled = not self._lets_go or (self._link.is_connected and not self._hangs and reaches)
        self._hooks.configure(Settings((ready.port4, ready.port6), resolver, self._no_udp, enabled))

    def _leave_alone_near(self) -> None:
        """This host's addresses, as they are now: another network may give what was ours to somebody else."""
        now = self._near()
        self._hooks.redirect_again(self._near_now - now - self._excluded)
        self._hooks.leave_alone(now - self._near_now)
        self._near_now = now

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
        for said in self._link.hear():
            if isinstance(said, Reach):
                self._reaches = said.usable
                self._switch()
                continue
            attempt, _ = self._asked.get(said.cookie, (None, None))
            if attempt is not None:
                self._asked[said.cookie] = attempt, said.errno
                self._tell(attempt, said.errno)
        self._check_agent()

    def _check_agent(self) -> None:
        """Where the agent is gone, nobody will answer what was asked. A granted one ignores it."""
        if not self._link.is_connected:
            self._refuse_unanswered()
            if self._lets_go:
                self._switch()

    def _refuse_unanswered(self) -> None:
        for attempt, answer in self._asked.values():
            if answer is None:
                self._tell(attempt, errno.ECONNREFUSED)
        self._asked.clear()

    def _tell(self, attempt: Attempt, error: int) -> None:
        self._refusals.refuse(attempt, self._port(attempt), error)

    def _port(self, attempt: Attempt) -> int:
        local = attempt.local.address
        return self._link.ready.port6 if local is not None and local.version == 6 else self._link.ready.port4


def networks_of(endpoints: Iterable[str]) -> Iterable[IPv4Network | IPv6Network]:
    """Each address as a network of one; none where a name has none now."""
    for endpoint in map(Endpoint.parse, endpoints):
        with contextlib.suppress(OSError):
            for *_, sockaddr in socket.getaddrinfo(str(endpoint.host), endpoint.port, type=socket.SOCK_STREAM):
                yield ip_network(str(Endpoint.from_sockaddr(sockaddr).host))
