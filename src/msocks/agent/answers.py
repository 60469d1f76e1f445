"""What a program is told when there is no connection for it: SOCKS reply codes and HTTP statuses.

`docs/reference/cli.md` has the table.
"""

from __future__ import annotations

import errno
from http import HTTPStatus

from msocks.agent.policy_errors import NoLinkAllowed
from msocks.errors import (
    AuthenticationError,
    ControlUnavailable,
    DestinationError,
    EndReason,
    LinkUnavailable,
    ListenError,
    MsocksError,
    ProtocolError,
    SessionEnded,
)
from msocks.protocol.http_connect import status_of
from msocks.protocol.socks5_wire import ReplyCode

_REPLY_OF_END = {
    EndReason.SERVER_RESET: ReplyCode.CONNECTION_REFUSED,
    EndReason.SERVER_TIMED_OUT: ReplyCode.TTL_EXPIRED,
    EndReason.USER_REMOVED: ReplyCode.NOT_ALLOWED,
}


class ConnectTimeout(MsocksError, TimeoutError):
    """A program's connection did not come about in time.

    Attributes:
        no_network: Whether the reason is that the proxy could not be reached over any link.
    """

    def __init__(self, destination: str, after_s: float, *, problem: MsocksError | None, no_network: bool) -> None:
        """
        Args:
            destination: As printed.
            after_s: How long was waited, in seconds.
            problem: Why there is no association with the proxy, if that is known.
            no_network: See the attribute.
        """
        what = f"{destination}: no connection within {after_s:g} s"
        if problem is not None:
            super().__init__(f"{what}: {problem.what}", remedy=problem.remedy)
        elif no_network:
            super().__init__(f"{what}: there is no usable link", remedy="`msocks links` shows the links")
        else:
            super().__init__(what, remedy="`msocks status` shows how the agent is doing")
        self.no_network = no_network


class Overload(MsocksError):
    """The agent has as many flows as it may have."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the agent has {limit} flows, as many as it may have",
            remedy="end some, or raise limits.flows in the agent's configuration",
        )


def reply_code_of(error: MsocksError) -> ReplyCode:
    """The SOCKS reply code (RFC 1928 section 6) that says most of `error`."""
    match error:
        case DestinationError(reply_code=code) if ReplyCode.SUCCEEDED < code <= ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED:
            return ReplyCode(code)
        case SessionEnded(reason=reason):
            return _REPLY_OF_END.get(reason, ReplyCode.GENERAL_FAILURE)
        case AuthenticationError() | ListenError(errno=errno.EACCES):
            return ReplyCode.NOT_ALLOWED
        case ListenError(errno=errno.ETIMEDOUT):
            return ReplyCode.TTL_EXPIRED
        case NoLinkAllowed(barred=True):
            return ReplyCode.NOT_ALLOWED
        case LinkUnavailable() | ControlUnavailable() | ConnectTimeout(no_network=True) | NoLinkAllowed():
            return ReplyCode.NETWORK_UNREACHABLE
        case ConnectTimeout():
            return ReplyCode.TTL_EXPIRED
    return ReplyCode.GENERAL_FAILURE


def http_status_of(error: MsocksError) -> HTTPStatus:
    """The HTTP status (RFC 9110 section 15) that says most of `error`."""
    match error:
        case NoLinkAllowed(barred=True):
            return HTTPStatus.FORBIDDEN
        case LinkUnavailable() | ControlUnavailable() | ConnectTimeout(no_network=True) | NoLinkAllowed() | Overload():
            return HTTPStatus.SERVICE_UNAVAILABLE
        case ProtocolError():
            return HTTPStatus.BAD_REQUEST
    return status_of(reply_code_of(error))
