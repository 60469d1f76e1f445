"""The table of `docs/reference/cli.md`: which reply code and which HTTP status an error becomes."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from msocks.agent.answers import ConnectTimeout, Overload, http_status_of, reply_code_of
from msocks.errors import (
    AuthenticationError,
    ControlUnavailable,
    DestinationError,
    EndReason,
    LinkUnavailable,
    MsocksError,
    PinMismatch,
    ProtocolError,
    ProtocolFault,
    SessionEnded,
)


def timeout(*, no_network: bool) -> ConnectTimeout:
    return ConnectTimeout("server.example:80", 120, problem=None, no_network=no_network)


TABLE: list[tuple[MsocksError, int, int]] = [
    (DestinationError.from_reply(0x01), 0x01, 502),
    (DestinationError.from_reply(0x02), 0x02, 403),
    (DestinationError.from_reply(0x03), 0x03, 502),
    (DestinationError.from_reply(0x04), 0x04, 502),
    (DestinationError.from_reply(0x05), 0x05, 502),
    (DestinationError.from_reply(0x06), 0x06, 504),
    (DestinationError.from_reply(0x07), 0x07, 501),
    (DestinationError.from_reply(0x08), 0x08, 502),
    (DestinationError.from_reply(0x09), 0x01, 502),
    (SessionEnded.because(EndReason.SERVER_RESET), 0x05, 502),
    (SessionEnded.because(EndReason.SERVER_TIMED_OUT), 0x06, 504),
    (SessionEnded.because(EndReason.USER_REMOVED), 0x02, 403),
    (SessionEnded.because(EndReason.LIMIT), 0x01, 502),
    (SessionEnded.because(EndReason.PROXY_FAILED), 0x01, 502),
    (AuthenticationError("no"), 0x02, 403),
    (PinMismatch(bytes(32), bytes(32)), 0x02, 403),
    (LinkUnavailable("wlan0", "down"), 0x03, 503),
    (ControlUnavailable("no"), 0x03, 503),
    (timeout(no_network=True), 0x03, 503),
    (timeout(no_network=False), 0x06, 504),
    (Overload(1), 0x01, 503),
    (ProtocolError(ProtocolFault.FIELD, "no"), 0x01, 400),
]


@pytest.mark.parametrize(("error", "code", "status"), TABLE, ids=lambda value: str(value)[:30])
def test_an_error_becomes_a_code_and_a_status(error: MsocksError, code: int, status: int):
    assert (reply_code_of(error), http_status_of(error)) == (code, HTTPStatus(status))


def test_a_timeout_names_what_is_known_to_be_the_matter():
    problem = LinkUnavailable("wlan0", "it has no carrier")
    told = str(ConnectTimeout("server.example:80", 120, problem=problem, no_network=True))
    assert "server.example:80" in told
    assert "120 s" in told
    assert "no carrier" in told
    assert "msocks links" in told
