"""The table ``[policy]`` of a configuration file."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any

from pydantic import Field, PlainValidator

from msocks.cli.configuration.tables import Table, choice, is_link_name, text
from msocks.cli.network import parse_network
from msocks.errors import ConfigurationError
from msocks.policy.model import DEFAULT_HOLD_DOWN_S, NoLink, OnLoss, Role
from msocks.policy.terms import PortRange, Selector, Term, parse_selector, parse_term
from msocks.values.link import LinkKind

# comm has 16 bytes, the closing zero included (proc(5)).
_MOST_PROCESS_BYTES = 15
_NAME_GLOB = re.compile(r"[a-z0-9_.*?\[\]!-]{1,255}")
_MOST_RULES = 10_000


def _label(value: str) -> str:
    if not value.strip() or len(value) > 64 or not value.isprintable():
        raise ConfigurationError(f"{value[:20]!r} is no name", remedy="give 1 to 64 printable characters")
    return value


def _pattern(value: str) -> str:
    if not is_link_name(value):
        raise ConfigurationError(
            f"{value[:20]!r} cannot be the name of a network interface, or a glob of names",
            remedy="`ip link` shows the names; they have at most 15 bytes",
        )
    return value


def _process(value: str) -> str:
    if not value or "/" in value:
        raise ConfigurationError(f"{value[:40]!r} is no name of a process", remedy="give the name without a path")
    if len(value.encode()) > _MOST_PROCESS_BYTES and not re.search(r"[*?\[]", value):
        shown = value.encode()[:_MOST_PROCESS_BYTES].decode(errors="ignore")
        raise ConfigurationError(
            f"{value[:40]!r} can be the name of no process: the kernel keeps {_MOST_PROCESS_BYTES} bytes",
            remedy=f'write "{shown}"',
        )
    return value


def _account(value: str) -> str:
    if not value:
        raise ConfigurationError("the name of the account is empty", remedy='for instance: user = ["alice", "1000"]')
    return value


def _tag(value: str) -> str:
    if not value:
        raise ConfigurationError("the tag is empty", remedy='for instance: tag = ["backup"]')
    return value


def _destination(value: str) -> str | IPv4Network | IPv6Network:
    lowered = value.lower().rstrip(".")
    if "/" in value or ":" in value or re.fullmatch(r"[0-9.]+", value):
        return parse_network(value)
    if _NAME_GLOB.fullmatch(lowered) is None:
        raise ConfigurationError(
            f"{value[:40]!r} is neither a name nor a network",
            remedy='write "server.example", "*.example" or "192.0.2.0/24"; the port has a key of its own',
        )
    return lowered


def _ports(value: Any) -> PortRange:
    if isinstance(value, int) and not isinstance(value, bool):
        return PortRange(value, value)
    if isinstance(value, str) and value.isascii():
        first, dash, last = value.partition("-")
        if first.isdecimal() and (last.isdecimal() if dash else not last):
            return PortRange(int(first), int(last or first))
    raise ConfigurationError(f"{value!r} is no port", remedy='write 443 or "8000-8999"')


LinkPattern = Annotated[str, text(_pattern, "a link")]
Label = Annotated[str, text(_label, "a rule's name")]
ProcessGlob = Annotated[str, text(_process, "a process")]
AccountGlob = Annotated[str, text(_account, "an account")]
TagGlob = Annotated[str, text(_tag, "a tag")]
DestinationText = Annotated[str | IPv4Network | IPv6Network, text(_destination, "a destination")]
SourceText = Annotated[IPv4Network | IPv6Network, text(parse_network, "a network")]
Ports = Annotated[PortRange, PlainValidator(_ports)]
TermText = Annotated[Term, text(parse_term, "a preference")]
SelectorText = Annotated[Selector, text(parse_selector, "a set of links")]
KindText = Annotated[LinkKind, choice(LinkKind, "kind")]
RoleText = Annotated[Role, choice(Role, "role")]
OnLossText = Annotated[OnLoss, choice(OnLoss, "on_loss")]
NoLinkText = Annotated[NoLink, choice(NoLink, "no_link")]
Figure = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PolicyLinkTable(Table):
    """``[policy.link.NAME]``; see `msocks.policy.model.LinkProfile`."""

    kind: KindText | None = Field(default=None, examples=['"cellular"'])
    role: RoleText = Field(default=Role.ALWAYS, examples=['"backup"'])
    cost: Figure | None = Field(default=None, examples=["1"])
    rate_mbit: Rate | None = Field(default=None, examples=["100"])
    coverage: Figure | None = Field(default=None, examples=["3"])
    cap_mib: Annotated[int, Field(ge=1)] | None = Field(default=None, examples=["5120"])
    cap_day: Annotated[int, Field(ge=1, le=28)] = Field(default=1, examples=["1"])


class PolicyRuleTable(Table):
    """``[[policy.rule]]``; see `msocks.policy.model.Rule`."""

    name: Label = Field(examples=['"video"'])
    process: list[ProcessGlob] | None = Field(default=None, min_length=1, examples=['["mpv", "vlc*"]'])
    user: list[AccountGlob] | None = Field(default=None, min_length=1, examples=['["alice", "1000"]'])
    tag: list[TagGlob] | None = Field(default=None, min_length=1, examples=['["video"]'])
    source: list[SourceText] | None = Field(default=None, min_length=1, examples=['["192.168.8.0/24"]'])
    destination: list[DestinationText] | None = Field(
        default=None, min_length=1, examples=['["*.example", "192.0.2.0/24"]']
    )
    port: list[Ports] | None = Field(default=None, min_length=1, examples=['[443, "8000-8999"]'])
    prefer: list[TermText] | None = Field(default=None, min_length=1, examples=['["kind:wifi", "lowest:rtt"]'])
    roles: dict[SelectorText, RoleText] | None = Field(default=None, min_length=1, examples=['{ wwan0 = "backup" }'])
    only: list[SelectorText] | None = Field(default=None, min_length=1, examples=['["wlan0", "kind:ethernet"]'])
    max_cost: Figure | None = Field(default=None, examples=["0"])
    on_loss: OnLossText = Field(default=OnLoss.MOVE, examples=['"wait"'])
    no_link: NoLinkText = Field(default=NoLink.WAIT, examples=['"refuse"'])


class PolicyTable(Table):
    """``[policy]``; see `msocks.policy.decision.Policy`."""

    hold_down_s: Figure = Field(default=DEFAULT_HOLD_DOWN_S, examples=["10"])
    link: dict[LinkPattern, PolicyLinkTable] | None = Field(
        default=None, min_length=1, examples=['{ wwan0 = { role = "backup" } }']
    )
    rule: list[PolicyRuleTable] | None = Field(
        default=None, min_length=1, max_length=_MOST_RULES, examples=['[{ name = "all", prefer = ["lowest:rtt"] }]']
    )
