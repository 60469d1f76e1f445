"""Strategies for the protocol's values, so that tests say `st.from_type(LegRequest)`, and ways to cut byte strings."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from msocks.errors import EndReason
from msocks.protocol import control, inbound, leg, probe
from msocks.values.endpoint import Endpoint
from msocks.values.ids import MAX_GENERATION, AssociationId, SessionId

LABELS = st.text("abcxyzABCXYZ0123456789-_", min_size=1, max_size=63)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join).filter(lambda name: not name[-1].isdigit())
PORTS = st.integers(0, 65535)
U64 = st.integers(0, 2**64 - 1)
OFFSETS = st.integers(0, 2**63 - 1)
MAYBE_OFFSETS = st.none() | OFFSETS
GENERATIONS = st.integers(0, MAX_GENERATION)
LEG_GENERATIONS = st.integers(1, MAX_GENERATION)
KEYS = st.binary(min_size=32, max_size=32)
IDS = st.binary(min_size=16, max_size=16).filter(any)
LABEL_TEXTS = st.text(max_size=60).filter(str.isprintable)
USERS = st.text("aä€7.-_@", min_size=1, max_size=20)

ADDRESS_ENDPOINTS = st.builds(Endpoint, st.ip_addresses(), PORTS)
SESSIONS = IDS.map(SessionId)
ASSOCIATIONS = IDS.map(AssociationId)

st.register_type_strategy(Endpoint, ADDRESS_ENDPOINTS | st.builds(Endpoint, NAMES, PORTS))
st.register_type_strategy(SessionId, SESSIONS)
st.register_type_strategy(AssociationId, ASSOCIATIONS)

HEADER = {
    "association": ASSOCIATIONS,
    "leg_number": U64,
    "expires_ms": U64,
    "session": SESSIONS,
    "generation": LEG_GENERATIONS,
}
REQUESTS = (
    st.builds(leg.Connect, **HEADER)
    | st.builds(leg.Bind, **HEADER)
    | st.builds(
        leg.Reconnect,
        **HEADER,
        received=OFFSETS,
        upstream_from=OFFSETS,
        down_fin_at=MAYBE_OFFSETS,
        up_fin_at=MAYBE_OFFSETS,
    )
    | st.builds(leg.Query, **HEADER | {"generation": GENERATIONS})
    | st.builds(
        leg.Close, **HEADER | {"generation": GENERATIONS}, mode=st.just(leg.CloseMode.GRACEFUL), up_fin_at=OFFSETS
    )
    | st.builds(leg.Close, **HEADER | {"generation": GENERATIONS}, mode=st.just(leg.CloseMode.RESET))
)
st.register_type_strategy(leg.LegRequest, REQUESTS)


@st.composite
def replies(draw: st.DrawFn) -> leg.LegReply:
    status = draw(st.sampled_from(leg.LegStatus))
    return leg.LegReply(
        status=status,
        socks_reply=draw(st.integers(1, 255)) if status is leg.LegStatus.REFUSED else 0,
        generation=draw(GENERATIONS),
        down_from=draw(OFFSETS),
        up_acked=draw(OFFSETS),
        down_fin_at=draw(MAYBE_OFFSETS),
        up_fin_at=draw(MAYBE_OFFSETS),
        bound=draw(st.none() | ADDRESS_ENDPOINTS),
        datapath=draw(st.sampled_from(leg.DatapathKind)),
        datapath_reason=draw(st.sampled_from(leg.DatapathReason)),
        proxy_ms=draw(U64),
    )


st.register_type_strategy(leg.LegReply, replies())

PROBES: st.SearchStrategy[probe.ProbeMessage] = st.one_of(
    st.builds(probe.Probe, ASSOCIATIONS, U64, U64),
    st.builds(probe.ProbeAnswer, ASSOCIATIONS, U64, U64, ADDRESS_ENDPOINTS),
    st.builds(probe.PositionQuery, ASSOCIATIONS, U64, SESSIONS),
    st.builds(probe.Position, ASSOCIATIONS, U64, SESSIONS, OFFSETS),
)
st.register_type_strategy(probe.Probe, PROBES)

HELLOS = st.builds(
    control.Hello,
    user=USERS,
    secret=KEYS,
    association=ASSOCIATIONS,
    smallest_mtu=st.integers(0, 65535),
    link=LABEL_TEXTS,
    agent_name=LABEL_TEXTS,
    agent_version=LABEL_TEXTS,
)
WELCOMES = st.builds(
    control.Welcome,
    association=ASSOCIATIONS,
    key_up=KEYS.map(lambda key: b"u" + key[1:]),
    key_down=KEYS.map(lambda key: b"d" + key[1:]),
    proxy_ms=U64,
    detach_grace_s=st.integers(0, 2**32 - 1),
    max_sessions=st.integers(0, 2**32 - 1),
    observed=ADDRESS_ENDPOINTS,
    server_version=LABEL_TEXTS,
)
REFUSALS = st.builds(control.Refused, st.sampled_from(control.RefusalCode), LABEL_TEXTS)
PINGS = st.builds(control.Ping, U64, U64)
PONGS = st.builds(control.Pong, U64, U64)
PARKS = st.lists(st.builds(control.ParkedLeg, SESSIONS, GENERATIONS, OFFSETS), min_size=1, max_size=5).map(
    lambda legs: control.Park(tuple(legs))
)
RECEIVEDS = st.lists(
    st.builds(control.ReceivedStream, SESSIONS, GENERATIONS, OFFSETS, st.booleans(), st.booleans()), max_size=5
).map(lambda listed: control.Received(tuple(listed)))
PARKEDS = st.lists(st.tuples(SESSIONS, GENERATIONS), max_size=5).map(lambda listed: control.Parked(tuple(listed)))
LISTENERS = st.integers(1, 2**32 - 1)
LISTENS = st.builds(inbound.Listen, LISTENERS, PORTS, st.booleans(), st.from_type(Endpoint))
FROM_CLIENT = PINGS | PONGS | PARKS | LISTENS | st.builds(inbound.Unlisten, LISTENERS)
FROM_PROXY = (
    PINGS
    | PONGS
    | st.builds(control.LegAccepted, SESSIONS, GENERATIONS, U64)
    | st.builds(control.SessionEnded, SESSIONS, st.sampled_from(EndReason))
    | PARKEDS
    | RECEIVEDS
    | st.builds(control.Drain, st.from_type(Endpoint))
    | st.builds(inbound.Listening, LISTENERS, st.just(inbound.ListenStatus.OPEN), ADDRESS_ENDPOINTS, LABEL_TEXTS)
    | st.builds(inbound.Listening, LISTENERS, st.sampled_from(list(inbound.ListenStatus)[1:]), text=LABEL_TEXTS)
    | st.builds(inbound.Incoming, LISTENERS, SESSIONS, ADDRESS_ENDPOINTS, ADDRESS_ENDPOINTS)
)
st.register_type_strategy(control.Hello, HELLOS)
st.register_type_strategy(control.Welcome, WELCOMES)
st.register_type_strategy(control.Refused, REFUSALS)
st.register_type_strategy(control.Ping, PINGS)
# The wide groups stand behind the type that only one side may send.
st.register_type_strategy(control.Park, FROM_CLIENT)
st.register_type_strategy(control.Drain, FROM_PROXY)


def cut(data: bytes, points: list[int]) -> list[bytes]:
    """`data` in pieces, cut at the points (modulo its length); no piece is empty, none is left out."""
    edges = sorted({0, len(data)} | {point % (len(data) + 1) for point in points})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@pytest.fixture(scope="session")
def pieces() -> Callable[[bytes, list[int]], list[bytes]]:
    return cut


@pytest.fixture(scope="session")
def each_byte() -> Callable[[bytes], Iterator[bytes]]:
    return lambda data: (data[at : at + 1] for at in range(len(data)))


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], Any]:
    directory = Path(__file__).parent / "vectors"
    return lambda name: json.loads((directory / name).read_text())


@pytest.fixture(scope="session")
def no_address() -> Endpoint:
    return Endpoint(IPv4Address(0), 0)
