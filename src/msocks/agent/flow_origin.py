"""From a program's request to what the policy can know and has to respect of it."""

from __future__ import annotations

from ipaddress import IPv6Address

from msocks.agent.local_port import ProgramRequest
from msocks.agent.steering import with_origin
from msocks.agent.udp_flow import DESTINATION as UDP_DESTINATION
from msocks.errors import ConfigurationError
from msocks.policy.model import NO_HAND, FlowFacts, Hand, OnLoss
from msocks.policy.terms import parse_term
from msocks.protocol.socks5_wire import Command
from msocks.values.endpoint import Host
from msocks.values.origin import Wish


def facts_of(request: ProgramRequest) -> FlowFacts:
    """What rules can know of a request before the program is looked for."""
    host: Host = request.destination.host
    port = request.destination.port
    if request.command is Command.UDP_ASSOCIATE:
        host, port = UDP_DESTINATION, 0  # what the request names is the program's own address
    if isinstance(host, str):
        host = host.lower().rstrip(".")
    elif isinstance(host, IPv6Address):
        host = host.ipv4_mapped or host
    facts = FlowFacts(host, port)
    return facts if request.origin is None else with_origin(facts, request.origin)


def hand_of(wish: Wish | None) -> Hand:
    """What was asked for a flow when its program was started.

    Raises:
        ConfigurationError: It cannot be understood.
    """
    if wish is None:
        return NO_HAND
    try:
        on_loss = None if wish.on_loss is None else OnLoss(wish.on_loss)
    except ValueError:
        raise ConfigurationError(
            f"there is no on_loss {wish.on_loss!r}", remedy=f"choose one of {', '.join(OnLoss)}"
        ) from None
    return Hand(pin=wish.link, prefer=tuple(parse_term(text) for text in wish.prefer), on_loss=on_loss)
