from __future__ import annotations

import errno
import inspect

import pytest

from msocks import errors
from msocks.errors import (
    AuthenticationError,
    DestinationError,
    EndReason,
    LinkUnavailable,
    MsocksError,
    PinMismatch,
    ProtocolError,
    ProtocolFault,
    SessionEnded,
    SessionReset,
)


def test_every_error_is_an_msocks_error():
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
    assert len(kinds) > 10
    assert all(issubclass(kind, MsocksError) for kind in kinds)


def test_an_error_says_what_happened_and_what_to_do():
    assert str(MsocksError("it broke")) == "it broke"
    assert str(AuthenticationError("it broke", remedy="mend it")) == "it broke; mend it"
    assert ProtocolError(ProtocolFault.VERSION, "it broke").reason is ProtocolFault.VERSION


@pytest.mark.parametrize(
    ("code", "kind", "number"),
    [
        (1, OSError, None),
        (2, OSError, errno.EACCES),
        (3, OSError, errno.ENETUNREACH),
        (4, OSError, errno.EHOSTUNREACH),
        (5, ConnectionRefusedError, errno.ECONNREFUSED),
        (6, TimeoutError, errno.ETIMEDOUT),
        (7, OSError, errno.EOPNOTSUPP),
        (8, OSError, errno.EAFNOSUPPORT),
        (200, OSError, None),
    ],
)
def test_a_reply_code_becomes_what_connect_would_have_raised(code, kind, number):
    error = DestinationError.from_reply(code, "example.org:80")
    assert isinstance(error, DestinationError)
    assert isinstance(error, kind)
    assert error.errno == number
    assert error.reply_code == code
    assert str(error).startswith("example.org:80: the ")


def test_a_session_that_the_server_reset_is_a_reset_connection():
    assert isinstance(SessionEnded.because(EndReason.SERVER_RESET), SessionReset)
    assert isinstance(SessionEnded.because(EndReason.SERVER_RESET), ConnectionResetError)


@pytest.mark.parametrize("reason", [reason for reason in EndReason if reason is not EndReason.SERVER_RESET])
def test_every_other_end_is_a_connection_error_that_is_no_reset(reason):
    error = SessionEnded.because(reason)
    assert error.reason is reason
    assert str(error)
    assert isinstance(error, ConnectionError)
    assert not isinstance(error, ConnectionResetError)


def test_a_pin_mismatch_shows_both_fingerprints():
    error = PinMismatch(b"\x01" * 32, b"\x02" * 32)
    assert "01" * 32 in str(error)
    assert "02" * 32 in str(error)
    assert isinstance(error, AuthenticationError)


def test_a_link_that_is_unavailable_is_named():
    assert LinkUnavailable.unknown("wlan0").link == "wlan0"
    assert "wlan0" in str(LinkUnavailable("wlan0", "it is down"))
