"""Arguments of several verbs: endpoints and networks, refused with the reason; links."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Any

import click

from msocks.cli.network import parse_interface, parse_network
from msocks.errors import ConfigurationError
from msocks.values.endpoint import Endpoint


class EndpointParameter(click.ParamType[Endpoint]):
    """``HOST:PORT``, IPv6 as ``[ADDRESS]:PORT``."""

    name = "HOST:PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Endpoint:
        try:
            return value if isinstance(value, Endpoint) else Endpoint.parse(value)
        except ConfigurationError as error:
            self.fail(str(error), param, ctx)


class NetworkParameter(click.ParamType[IPv4Network | IPv6Network]):
    """An IPv4 or IPv6 network in CIDR notation, or an address for that alone."""

    name = "CIDR"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> IPv4Network | IPv6Network:
        try:
            return value if isinstance(value, IPv4Network | IPv6Network) else parse_network(value)
        except ConfigurationError as error:
            self.fail(str(error), param, ctx)


class InterfaceParameter(click.ParamType[str]):
    """The name of a network interface, no glob."""

    name = "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return parse_interface(value)
        except ConfigurationError as error:
            self.fail(str(error), param, ctx)


INTERFACE = InterfaceParameter()
ENDPOINT = EndpointParameter()
NETWORK = NetworkParameter()

links_option = click.option(
    "--link",
    "links",
    multiple=True,
    metavar="NAME",
    help="A network interface that may be used; given several times, the first is preferred. By default all that have "
    "a route.",
)
