"""What the keeper of a run and the agent say to each other, on a Unix socket that keeps packets apart (SOCK_SEQPACKET).

One JSON object a packet. The keeper begins with a `Run`, or a `Router`; the agent answers with `Ready` or `Refused`.
Then come `Connect` from the keeper, and `Refuse` and `Reach` from the agent. That a connection is granted is not said:
the program's socket gets its answer from the agent itself. When either side ends, so does the registration; the flows
of a run go on, those of a router cannot, since their packets do not come here any more.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, TypeVar

from msocks.errors import ConfigurationError
from msocks.values.origin import Wish

MAX_BYTES = 16 * 1024
"""Of one packet."""

Message = TypeVar("Message", bound="Run | Router | Ready | Refused | Connect | Refuse | Reach")


@dataclass(frozen=True, slots=True)
class Run:
    """A run begins: all its connections have this tag and this wish. With `reach` the keeper wants to hear `Reach`."""

    tag: str | None = None
    wish: Wish = field(default_factory=Wish)
    reach: bool = False


@dataclass(frozen=True, slots=True)
class Router:
    """Connections of other hosts, brought here by TPROXY; the listening sockets come with this packet (SCM_RIGHTS)."""

    tag: str | None = None
    reach: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """The agent's ports for the run, on 127.0.0.1 and ::1 (0 where there is no IPv6); and the proxy's endpoints.

    `netns` is the cookie of the agent's network namespace, whose loopback that is; 0 where the kernel has none.
    """

    port4: int
    port6: int
    netns: int = 0
    proxy: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """The agent cannot serve the run."""

    what: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Connect:
    """A program is in connect(): its end is `local`, it wants `destination` (both printed), and `cookie` names it."""

    cookie: int
    local: str
    destination: str
    pid: int
    uid: int
    process: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """There is no connection for `cookie`; connect() shall end with `errno`."""

    cookie: int
    errno: int


@dataclass(frozen=True, slots=True)
class Reach:
    """Whether the agent has a network and a proxy, as far as it knows: said at every change, and every second anyway.

    So its silence tells that it hangs.
    """

    usable: bool


_KINDS: dict[str, type] = {
    kind.__name__.lower(): kind for kind in (Run, Router, Ready, Refused, Connect, Refuse, Reach)
}


def encode(message: Run | Router | Ready | Refused | Connect | Refuse | Reach) -> bytes:
    """The packet of a message."""
    return json.dumps({"say": type(message).__name__.lower(), **dataclasses.asdict(message)}).encode()


def decode(packet: bytes, *expected: type[Message]) -> Message:
    """The message of a packet, which is of one of the kinds that are expected.

    Raises:
        ConfigurationError: It is none. Fields that are not known are passed over.
    """
    try:
        values = json.loads(packet)
        kind = _KINDS[values.pop("say")]
        names = {each.name: str(each.type) for each in dataclasses.fields(kind)}
        known = {name: _value(values[name], names[name]) for name in names if name in values}
        message = kind(**known)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        message = None
    if not isinstance(message, expected):
        raise ConfigurationError(
            f"{packet[:80]!r} is nothing that `msocks run` and its agent say", remedy="restart the agent: update both"
        )
    return message


def _value(value: Any, annotation: str) -> Any:
    match annotation, value:
        case "Wish", dict():
            return Wish(
                _value(value.get("link"), "str | None"),
                _value(value.get("prefer", []), "tuple[str, ...]"),
                _value(value.get("on_loss"), "str | None"),
            )
        case "tuple[str, ...]", list() if all(isinstance(each, str) for each in value):
            return tuple(value)
        case "int", int() if not isinstance(value, bool):
            return value
        case "bool", bool():
            return value
        case "str" | "str | None", str():
            return value
        case "str | None", None:
            return None
    raise ValueError(annotation)
