"""What a policy consists of, and what is known of links and flows when it is asked. Frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network

from msocks.policy.terms import PortRange, Selector, Term
from msocks.values.endpoint import Address, Host
from msocks.values.link import LinkKind

DEFAULT_HOLD_DOWN_S = 10.0
DEFAULT_COVERAGE = {LinkKind.CELLULAR: 3.0, LinkKind.WIFI: 2.0, LinkKind.ETHERNET: 1.0}
DEFAULT_COST = {LinkKind.CELLULAR: 1.0, LinkKind.WIFI: 0.0, LinkKind.ETHERNET: 0.0}


class Role(StrEnum):
    """When a link may be used."""

    ALWAYS = "always"
    SECONDARY = "secondary"
    """After those that are `always`, unless a rule's preferences select it."""
    BACKUP = "backup"
    """Only where no other link is left, whatever the preferences say."""
    NEVER = "never"


class OnLoss(StrEnum):
    """What becomes of a flow whose link is lost."""

    MOVE = "move"
    WAIT = "wait"
    """It waits for that link, or for one that it prefers to it."""
    RESET = "reset"


class NoLink(StrEnum):
    """What becomes of a new flow for which there is no link that it may use."""

    WAIT = "wait"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """What the user says of links.

    Attributes:
        pattern: The interface's name, or a glob.
        kind: In place of what the kernel says.
        role: For flows whose rule says nothing else.
        cost: Of a unit of traffic, in whatever the user counts; 0 is free.
        rate_mbit: In Mbit/s, in place of what was measured.
        coverage: How wide its network reaches, in comparison.
        cap_mib: MiB that it may carry in a month, both directions together.
        cap_day: The day of the month on which that begins anew, 1 to 28.
    """

    pattern: str
    kind: LinkKind | None = None
    role: Role = Role.ALWAYS
    cost: float | None = None
    rate_mbit: float | None = None
    coverage: float | None = None
    cap_mib: int | None = None
    cap_day: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What holds for the flows that it matches: those that fit every field given, each by one of its entries.

    Attributes:
        name: Names it in explanations.
        process: Globs of process names.
        user: Globs of account names, or account numbers in digits.
        tag: Globs of the tags of `msocks run --tag`.
        source: Networks of other hosts, whose connections this one forwards.
        destination: Globs of host names, lower case; networks.
        port: Ranges of destination ports.
        prefer: What comes first among the links; each decides where those before leave two links equal.
        roles: Of links in place of what their profile says; the first that selects a link counts.
        only: No link but those that one of these selects; empty for all.
        max_cost: No link that costs more.
        on_loss: See `OnLoss`.
        no_link: See `NoLink`.
    """

    name: str
    process: tuple[str, ...] = ()
    user: tuple[str, ...] = ()
    tag: tuple[str, ...] = ()
    source: tuple[IPv4Network | IPv6Network, ...] = ()
    destination: tuple[str | IPv4Network | IPv6Network, ...] = ()
    port: tuple[PortRange, ...] = ()
    prefer: tuple[Term, ...] = ()
    roles: tuple[tuple[Selector, Role], ...] = ()
    only: tuple[Selector, ...] = ()
    max_cost: float | None = None
    on_loss: OnLoss = OnLoss.MOVE
    no_link: NoLink = NoLink.WAIT

    @property
    def matched_by(self) -> tuple[tuple[object, ...], ...]:
        """The fields that decide whether it matches; all empty where it matches everything."""
        return self.process, self.user, self.tag, self.source, self.destination, self.port

    @property
    def is_catch_all(self) -> bool:
        """Whether it matches every flow."""
        return not any(self.matched_by)


NO_RULE = Rule(name="")
"""What holds for a flow that no rule matches."""


@dataclass(frozen=True, slots=True)
class FlowFacts:
    """What rules can know of a flow; None where it is not known, which no pattern matches.

    Attributes:
        host: As the program named it: a name in lower case, or an address.
        port: The destination's.
        process: The kernel's name of the process (``comm``).
        user: The account's name.
        uid: The account's number.
        tag: What `msocks run --tag` said.
        source: Of the other host whose connection this one forwards.
    """

    host: Host
    port: int
    process: str | None = None
    user: str | None = None
    uid: int | None = None
    tag: str | None = None
    source: Address | None = None


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """What there is to know of a link at one moment.

    Attributes:
        name: The interface's.
        kind: What sort of network it leads to.
        usable: Whether a leg can be tried on it now.
        state: Why not, in one word: ``up``, ``down``, ``silent``, ``captive``.
        rtt_ms: Round-trip time to the proxy; None as long as nothing was answered.
        rate_mbit: As configured, else the most that was measured of late; None where neither is there.
        role: By its profile.
        cost: Of a unit of traffic.
        coverage: How wide its network reaches.
        cap_bytes: What it may carry in a month; None for no limit.
        used_bytes: What it has carried in this one; 0 where there is no limit.
    """

    name: str
    kind: LinkKind = LinkKind.ETHERNET
    usable: bool = True
    state: str = "up"
    rtt_ms: float | None = None
    rate_mbit: float | None = None
    role: Role = Role.ALWAYS
    cost: float = 0.0
    coverage: float = 1.0
    cap_bytes: int | None = None
    used_bytes: int = 0

    @property
    def is_capped(self) -> bool:
        """Whether it has carried all that it may."""
        return self.cap_bytes is not None and self.used_bytes >= self.cap_bytes


@dataclass(frozen=True, slots=True)
class Hand:
    """What people have said of one flow.

    Attributes:
        pin: The one link that it may use (`msocks pin`, `msocks run --link`).
        moved: The link that it was moved to and prefers since (`msocks move`).
        prefer: Comes before the rule's preferences (`msocks run --prefer`).
        on_loss: In place of the rule's (`msocks run --on-loss`).
    """

    pin: str | None = None
    moved: str | None = None
    prefer: tuple[Term, ...] = ()
    on_loss: OnLoss | None = None


NO_HAND = Hand()
