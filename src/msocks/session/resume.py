"""Where a new leg begins: the proxy's decision about a RECONNECT, from what the mobile says and the datapath knows."""

from __future__ import annotations

from dataclasses import dataclass

from msocks.session.first_flight import FirstFlight


@dataclass(frozen=True, slots=True)
class ClientPosition:
    """What the mobile says in its request; offsets in bytes."""

    received: int  # R: downstream bytes its kernel has received
    sends_from: int  # A: offset of the first upstream byte on the new leg
    up_fin: int | None  # offset at which the program ended its direction
    down_fin: int | None  # offset of the server's FIN, where the mobile has received it
    handover: bool = False  # the old leg carries on to its end; the new one begins behind it
    first_flight: int = 0  # so many bytes come from A on, which is a guess; then the client waits for U


@dataclass(frozen=True, slots=True)
class StreamState:
    """What the proxy's datapath knows. Upstream is mobile to server, downstream server to mobile."""

    up_taken: int  # U: the server has ACKed it (splice), or the proxy has taken it (relay)
    up_fin: int | None  # offset of the program's FIN, once the proxy has it
    down_acknowledged: int  # highest ACK that any mobile leg sent
    down_sent: int  # what the present leg has taken: where a handover begins
    down_available: int  # nothing beyond can have been received by the mobile: a larger R is a lie
    down_fin: int | None  # offset of the server's FIN, once the proxy has it


@dataclass(frozen=True, slots=True)
class Resumption:
    """The new leg's basepoints: `down_from` is D, `up_taken` is U, `up_from` A, or where a first flight counts from."""

    down_from: int
    up_taken: int
    up_from: int


class OffsetError(ValueError):
    """The mobile's offsets cannot be true, or cannot be served. Nothing has changed."""


def resume(client: ClientPosition, proxy: StreamState) -> Resumption:
    """Decide where both streams begin on a new leg.

    In a handover the new leg begins, in both directions, where what was sent on the old one ends. In a takeover
    D is max(R, highest ACK of an earlier leg): an earlier leg's kernel may have ACKed bytes that the program has not
    read when it counted R; they lie in the old socket, which the mobile drains up to D.

    Raises OffsetError where R is more than was ever sent, A is more than was ever taken (the bytes between are gone;
    in a handover they are still to come, and a first flight that does not join what has arrived is thrown away), or
    the ends of the streams disagree.
    """
    up_from = client.sends_from
    if client.first_flight:
        up_from = FirstFlight(up_from, client.first_flight).leg_begins_at(proxy.up_taken)
    if client.received > proxy.down_available:
        raise OffsetError(f"R is {client.received}, but only {proxy.down_available} bytes were sent downstream")
    if up_from > proxy.up_taken and not client.handover:
        raise OffsetError(f"A is {up_from}, but only {proxy.up_taken} upstream bytes have arrived")
    if up_from < 0:
        raise OffsetError(f"a first flight of {client.first_flight} bytes, where {proxy.up_taken} have arrived")
    if client.up_fin is not None and client.up_fin < client.sends_from:
        raise OffsetError(f"the upstream ends at {client.up_fin}, before A = {client.sends_from}")
    if client.up_fin is not None and client.up_fin < proxy.up_taken:
        raise OffsetError(f"the upstream ends at {client.up_fin}, but {proxy.up_taken} bytes of it have arrived")
    if proxy.up_fin is not None and client.up_fin != proxy.up_fin:
        raise OffsetError(f"the upstream ended at {proxy.up_fin}, and now the client says {client.up_fin}")
    if client.down_fin is not None and client.down_fin != proxy.down_fin:
        raise OffsetError(f"the client has a FIN at {client.down_fin}, the server ended at {proxy.down_fin}")
    if client.handover:
        return Resumption(down_from=proxy.down_sent, up_taken=proxy.up_taken, up_from=up_from)
    down_from = max(client.received, proxy.down_acknowledged)
    return Resumption(down_from=down_from, up_taken=proxy.up_taken, up_from=up_from)
