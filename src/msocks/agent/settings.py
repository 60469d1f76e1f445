"""What an agent is told before it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address

from msocks.errors import ConfigurationError
from msocks.policy.decision import Policy
from msocks.session.mobile import HOLD_DOWN_S
from msocks.values.access_link import AccessLink
from msocks.values.endpoint import Endpoint

NO_POLICY = Policy(hold_down_s=HOLD_DOWN_S)
"""Every flow on the first link that can be used."""
DEFAULT_LISTEN = Endpoint(IPv4Address("127.0.0.1"), 1080)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLimits:
    """How much of everything, and how long.

    Attributes:
        flows: Flows at the same time, at least 1. One more is refused.
        held_mib: MiB of bytes from programs that the proxy has not ACKed yet, of all flows together, parked ones
            included, at least 1. An idle flow holds none, one flow some 4.5 MiB at most. At the limit nobody is cut
            off: flows that hold 16 KiB or more read nothing from their programs until they hold less.
        handshakes: Programs that have connected and not yet said where to, at least 1. One more, and the oldest of them
            is closed.
        handshake_timeout_s: From a program's connection until it has said where to, in seconds, above 0.
        connect_timeout_s: How long a program waits for its connection, be it that there is no link, no proxy or no
            answer; in seconds, above 0.
        ended_flows: Ended flows that stay listed, at least 1.
        ended_kept_s: How long they stay listed, in seconds, above 0.
    """

    flows: int = 4096
    held_mib: int = 256
    handshakes: int = 1024
    handshake_timeout_s: float = 10.0
    connect_timeout_s: float = 120.0
    ended_flows: int = 100
    ended_kept_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("flows", "held_mib", "handshakes", "ended_flows"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"the limit {name} is {getattr(self, name)}", remedy="give at least 1")
        for name in ("handshake_timeout_s", "connect_timeout_s", "ended_kept_s"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}", remedy="give a duration above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """Settings of one agent.

    Attributes:
        access: The user's access to the proxy.
        listen: Where programs connect, at least one. Port 0 takes a free one; a name, such as ``localhost``, stands for
            all its addresses.
        links: Names of network interfaces in order of preference; None for all that have a route.
        control: Path of the control socket; None for the default place.
        allow_remote: Whether `listen` may have other than loopback addresses. Whoever reaches such a port uses the
            access link.
        spare_legs: Whether a connection to the proxy is kept open over each link that flows may have to move to.
        limits: See `AgentLimits`.
        policy: Which link carries which flow.
        state: Directory for what outlives the agent: what metered links have carried. None for the default place.

    Raises:
        ConfigurationError: Nothing to listen on, or no link at all.
    """

    access: AccessLink
    listen: tuple[Endpoint, ...] = (DEFAULT_LISTEN,)
    links: tuple[str, ...] | None = None
    control: str | None = None
    allow_remote: bool = False
    spare_legs: bool = True
    limits: AgentLimits = field(default_factory=AgentLimits)
    policy: Policy = NO_POLICY
    state: str | None = None

    def __post_init__(self) -> None:
        if not self.listen:
            raise ConfigurationError("the agent has nothing to listen on", remedy="give --listen HOST:PORT")
        if self.links is not None and not self.links:
            raise ConfigurationError("the agent may use no link at all", remedy="name one, or leave the list out")
