"""The values themselves: what cannot be said is refused when it is made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from msocks.protocol.leg import (
    Bind,
    Close,
    CloseMode,
    Connect,
    LegReply,
    LegStatus,
    Query,
    ReceivedReply,
    Reconnect,
)
from msocks.values.endpoint import Endpoint
from msocks.values.ids import AssociationId, SessionId

COMMON: dict[str, Any] = {
    "association": AssociationId(b"a" * 16),
    "leg_number": 1,
    "expires_ms": 30_000,
    "session": SessionId(b"s" * 16),
    "generation": 1,
}
SERVER = Endpoint("server.example", 443)
CONNECT = Connect(**COMMON, destination=SERVER)
RECONNECT = Reconnect(**COMMON, received=0, upstream_from=0)


@pytest.mark.parametrize(
    ("request_", "change", "complaint"),
    [
        (CONNECT, {"leg_number": -1}, "leg number"),
        (CONNECT, {"leg_number": 2**64}, "leg number"),
        (CONNECT, {"expires_ms": 2**64}, "expiry"),
        (CONNECT, {"generation": 2**32}, "generation"),
        (CONNECT, {"generation": 0}, "at least 1"),
        (Bind(**COMMON, destination=SERVER), {"generation": 0}, "at least 1"),
        (RECONNECT, {"generation": 0}, "at least 1"),
        (RECONNECT, {"received": 2**63}, "R is"),
        (RECONNECT, {"upstream_from": -1}, "A is"),
        (RECONNECT, {"down_fin_at": 2**63}, "down_fin_at"),
        (RECONNECT, {"up_fin_at": -1}, "up_fin_at"),
        (RECONNECT, {"first_flight": -1}, "first flight"),
        (RECONNECT, {"upstream_from": 5, "first_flight": 6}, "first flight"),
        (RECONNECT, {"upstream_from": 2**40, "first_flight": 2**32}, "first flight"),
        (RECONNECT, {"upstream_from": 5, "first_flight": 5, "handover_from": 1}, "handed over"),
        (RECONNECT, {"upstream_from": 5, "first_flight": 5, "up_fin_at": 9}, "within the first flight"),
        (Query(**COMMON), {"generation": -1}, "generation"),
        (Close(**COMMON, mode=CloseMode.RESET), {"up_fin_at": 1}, "a reset does not"),
        (Close(**COMMON, mode=CloseMode.GRACEFUL, up_fin_at=1), {"up_fin_at": None}, "where the upstream ends"),
        (Close(**COMMON, mode=CloseMode.GRACEFUL, up_fin_at=1), {"up_fin_at": 2**63}, "up_fin_at"),
    ],
)
def test_impossible_requests(request_, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        replace(request_, **change)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"socks_reply": 5}, "does not go with"),
        ({"status": LegStatus.REFUSED}, "does not go with"),
        ({"status": LegStatus.REFUSED, "socks_reply": 256}, "reply code"),
        ({"generation": 2**32}, "generation"),
        ({"down_from": 2**63}, "D is"),
        ({"up_acked": -1}, "U is"),
        ({"down_fin_at": 2**63}, "down_fin_at"),
        ({"up_fin_at": 2**63}, "up_fin_at"),
        ({"proxy_ms": 2**64}, "clock"),
        ({"bound": SERVER}, "is a name"),
    ],
)
def test_impossible_replies(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        replace(LegReply(status=LegStatus.OK), **change)


@pytest.mark.parametrize("status", LegStatus)
def test_nothing_unverified_ends_a_session(status):
    reply = LegReply(status=status, socks_reply=1 if status is LegStatus.REFUSED else 0)
    assert not ReceivedReply(reply, verified=False).ends_session
    may_go_on = {"OK", "REPLAYED", "EXPIRED", "STALE_GENERATION", "BUSY", "LIMIT", "CANNOT_SPLICE", "LEG_GONE"}
    may_go_on |= {"UNKNOWN_ASSOCIATION", "BAD_MAC", "MALFORMED"}
    assert ReceivedReply(reply, verified=True).ends_session is (status.name not in may_go_on)
