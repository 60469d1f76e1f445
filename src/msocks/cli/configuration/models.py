"""The tables of a configuration file. Defaults are those of the settings that they become."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from msocks.agent.settings import DEFAULT_LISTEN, AgentLimits
from msocks.cli.configuration.policy_models import PolicyTable
from msocks.cli.configuration.tables import Table, choice, is_link_name, text
from msocks.cli.network import parse_interface, parse_network
from msocks.datapath.splice.ports import PortRange
from msocks.errors import ConfigurationError
from msocks.interception.transparent import DEFAULT_TAG, OnOutage
from msocks.proxy.config import DEFAULT_SPLICE_PORTS, DatapathChoice, ProxyLimits, StoreChoice
from msocks.values.access_link import AccessLink
from msocks.values.endpoint import Endpoint

_HIGHEST_PORT = 65535


def _link_name(value: str) -> str:
    if not is_link_name(value):
        raise ConfigurationError(
            f"{value!r} cannot be the name of a network interface",
            remedy="`ip link` shows the names; they have at most 15 bytes",
        )
    return value


def _port_range(value: str) -> tuple[int, int]:
    first, dash, last = value.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and value.isascii()):
        raise ConfigurationError(f"{value!r} is no range of ports", remedy='write "FIRST-LAST"')
    found = int(first), int(last)
    PortRange(*found)  # which says what is wrong with it
    return found


def _port_span(value: str) -> tuple[int, int]:
    first, dash, last = value.partition("-")
    parts = (first, last if dash else first)
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise ConfigurationError(f"{value!r} is no port and no range of ports", remedy='write "PORT" or "FIRST-LAST"')
    found = int(parts[0]), int(parts[1])
    if not 1 <= found[0] <= found[1] <= _HIGHEST_PORT:
        raise ConfigurationError(f"{value!r} is no range of ports", remedy=f"ports go from 1 to {_HIGHEST_PORT}")
    return found


def _address(value: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(value)
    except ValueError:
        raise ConfigurationError(f"{value!r} is no IP address") from None


def _one_of_each(addresses: list[IPv4Address | IPv6Address]) -> list[IPv4Address | IPv6Address]:
    if len({address.version for address in addresses}) < len(addresses):
        raise ConfigurationError("there are several addresses of one IP version", remedy="give one of each at most")
    return addresses


def _tag(value: str) -> str:
    if not value:
        raise ConfigurationError("the tag is empty", remedy="leave it out, or give it a name")
    return value


def _path(value: str) -> Path:
    if not value or "\0" in value:
        raise ConfigurationError("the path is empty")
    return Path(value).expanduser()


EndpointText = Annotated[Endpoint, text(Endpoint.parse, "an address")]
AddressText = Annotated[IPv4Address | IPv6Address, text(_address, "an IP address")]
NetworkText = Annotated[IPv4Network | IPv6Network, text(parse_network, "a network")]
AccessLinkText = Annotated[AccessLink, text(AccessLink.parse, "an access link")]
DatapathText = Annotated[DatapathChoice, choice(DatapathChoice, "datapath")]
OnOutageText = Annotated[OnOutage, choice(OnOutage, "on_outage")]
StoreText = Annotated[StoreChoice, choice(StoreChoice, "store")]
PortRangeText = Annotated[tuple[int, int], text(_port_range, "a range of ports")]
TagText = Annotated[str, text(_tag, "a tag")]
InterfaceText = Annotated[str, text(parse_interface, "an interface's name")]
LinkName = Annotated[str, text(_link_name, "a link's name")]
PathText = Annotated[Path, text(_path, "a path")]

PortSpanText = Annotated[tuple[int, int], text(_port_span, "a port or a range of ports")]

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


_AGENT_LIMITS = AgentLimits()
_PROXY_LIMITS = ProxyLimits()


class AgentLimitsTable(Table):
    """``[agent.limits]``; see `msocks.agent.settings.AgentLimits`."""

    flows: Count = Field(default=_AGENT_LIMITS.flows, examples=["4096"])
    held_mib: Count = Field(default=_AGENT_LIMITS.held_mib, examples=["256"])
    handshakes: Count = Field(default=_AGENT_LIMITS.handshakes, examples=["1024"])
    handshake_timeout_s: Seconds = Field(default=_AGENT_LIMITS.handshake_timeout_s, examples=["10"])
    connect_timeout_s: Seconds = Field(default=_AGENT_LIMITS.connect_timeout_s, examples=["120"])
    ended_flows: Count = Field(default=_AGENT_LIMITS.ended_flows, examples=["100"])
    ended_kept_s: Seconds = Field(default=_AGENT_LIMITS.ended_kept_s, examples=["60"])


class AgentTable(Table):
    """``[agent]``; see `msocks.agent.settings.AgentSettings`."""

    access_file: PathText | None = Field(default=None, examples=['"/etc/msocks/access"'])
    access_link: AccessLinkText | None = Field(
        default=None, examples=['"msocks://alice:...@proxy.example.net:1080?pin=..."']
    )
    listen: list[EndpointText] = Field(
        default=[DEFAULT_LISTEN], min_length=1, examples=['["127.0.0.1:1080", "[::1]:1080"]']
    )
    links: list[LinkName] | None = Field(default=None, min_length=1, examples=['["wlan0", "usb0"]'])
    control: PathText | None = Field(default=None, examples=['"/run/msocks/agent.sock"'])
    allow_remote: bool = Field(default=False, examples=["false"])
    spare_legs: bool = Field(default=True, examples=["true"])
    state: PathText | None = Field(default=None, examples=['"/var/lib/msocks-agent"'])
    limits: AgentLimitsTable = Field(default_factory=AgentLimitsTable, examples=["{ flows = 4096 }"])


class ProxyLimitsTable(Table):
    """``[proxy.limits]``; see `msocks.proxy.config.ProxyLimits`."""

    half_open: Count = Field(default=_PROXY_LIMITS.half_open, examples=["2048"])
    half_open_per_source: Count = Field(default=_PROXY_LIMITS.half_open_per_source, examples=["512"])
    sessions: Count = Field(default=_PROXY_LIMITS.sessions, examples=["20000"])
    sessions_per_user: Count = Field(default=_PROXY_LIMITS.sessions_per_user, examples=["2000"])
    held_mib: Count = Field(default=_PROXY_LIMITS.held_mib, examples=["1024"])
    held_mib_per_user: Count = Field(default=_PROXY_LIMITS.held_mib_per_user, examples=["256"])
    channels_per_user: Count = Field(default=_PROXY_LIMITS.channels_per_user, examples=["64"])
    associations_per_user: Count = Field(default=_PROXY_LIMITS.associations_per_user, examples=["64"])
    resolutions: Count = Field(default=_PROXY_LIMITS.resolutions, examples=["32"])
    udp_associations: Count = Field(default=_PROXY_LIMITS.udp_associations, examples=["4096"])
    udp_associations_per_user: Count = Field(default=_PROXY_LIMITS.udp_associations_per_user, examples=["256"])
    listeners: Count = Field(default=_PROXY_LIMITS.listeners, examples=["1024"])
    listeners_per_user: Count = Field(default=_PROXY_LIMITS.listeners_per_user, examples=["32"])
    waiting_per_listener: Count = Field(default=_PROXY_LIMITS.waiting_per_listener, examples=["64"])
    tombstones: Count = Field(default=_PROXY_LIMITS.tombstones, examples=["20000"])


class ProxyTable(Table):
    """``[proxy]``; see `msocks.proxy.config.ProxyConfig`."""

    listen: list[EndpointText] = Field(min_length=1, examples=['["[::]:1080"]'])
    state: PathText = Field(examples=['"/var/lib/msocks"'])
    allow: list[NetworkText] = Field(default=[], examples=['["10.20.0.0/16"]'])
    deny: list[NetworkText] = Field(default=[], examples=['["192.0.2.0/24"]'])
    open: bool = Field(default=False, examples=["false"])
    datapath: DatapathText = Field(default=DatapathChoice.AUTO, examples=['"auto"'])
    splice_ports: PortRangeText = Field(default=DEFAULT_SPLICE_PORTS, examples=['"16384-32767"'])
    store: StoreText = Field(default=StoreChoice.SQLITE, examples=['"sqlite"'])
    half_closed_s: Seconds = Field(default=86400.0, examples=["86400"])
    detach_grace_s: Seconds = Field(default=86400.0, examples=["86400"])
    handshake_timeout_s: Seconds = Field(default=10.0, examples=["10"])
    connect_timeout_s: Seconds = Field(default=30.0, examples=["30"])
    channel_idle_s: Seconds = Field(default=180.0, examples=["180"])
    udp_idle_s: Seconds = Field(default=300.0, examples=["300"])
    udp_address: Annotated[list[AddressText], AfterValidator(_one_of_each)] = Field(
        default=[], examples=['["192.0.2.1"]']
    )
    bind: bool = Field(default=True, examples=["true"])
    bind_timeout_s: Seconds = Field(default=180.0, examples=["180"])
    publish: dict[str, list[PortSpanText]] = Field(default={}, examples=['{ alice = ["2222", "8000-8099"] }'])
    inbound_address: Annotated[list[AddressText], AfterValidator(_one_of_each)] = Field(
        default=[], examples=['["192.0.2.1"]']
    )
    take_timeout_s: Seconds = Field(default=60.0, examples=["60"])
    stop_grace_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(default=5.0, examples=["5"])
    tombstone_s: Seconds = Field(default=3600.0, examples=["3600"])
    limits: ProxyLimitsTable = Field(default_factory=ProxyLimitsTable, examples=["{ sessions = 20000 }"])


class TransparentTable(Table):
    """``[transparent]``; see `msocks.interception.transparent.TransparentSettings`."""

    host: bool = Field(default=False, examples=["true"])
    router: list[InterfaceText] = Field(default=[], examples=['["lan0"]'])
    exclude: list[NetworkText] = Field(default=[], examples=['["203.0.113.0/24"]'])
    private: bool = Field(default=False, examples=["false"])
    on_outage: OnOutageText = Field(default=OnOutage.WAIT, examples=['"wait"'])
    tag: TagText = Field(default=DEFAULT_TAG, examples=['"transparent"'])
    control: PathText | None = Field(default=None, examples=['"/run/msocks/agent.sock"'])


class ConfigurationFile(Table):
    """The whole file: a table for each daemon that it configures, and one for the agent's policy."""

    agent: AgentTable | None = Field(default=None, examples=['{ access_file = "/etc/msocks/access" }'])
    proxy: ProxyTable | None = Field(default=None, examples=['{ listen = ["[::]:1080"], state = "/var/lib/msocks" }'])
    transparent: TransparentTable | None = Field(default=None, examples=["{ host = true }"])
    policy: PolicyTable | None = Field(
        default=None, examples=['{ rule = [{ name = "all", prefer = ["lowest:rtt"] }] }']
    )
