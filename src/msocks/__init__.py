"""MSOCKS: TCP connections that outlive the network they were opened on.

For asyncio programs, streams as `asyncio.open_connection` gives them::

    reader, writer = await msocks.open_connection("example.net", 443, ssl=True)
    await writer.move("wlan0")

For others, a socket as `socket.create_connection` gives it::

    with msocks.create_connection(("example.net", 22)) as connection:
        connection.move("wwan0")

The access link comes from `access=` or from the file that $MSOCKS_ACCESS_FILE names. The names below are the public
interface; they are loaded when they are first used.
"""

from msocks.version import __version__

TYPE_CHECKING = False  # type checkers know the name; importing it from typing would cost every start of `msocks nc`
if TYPE_CHECKING:
    from msocks.client.blocking import MobileSocket, create_connection
    from msocks.client.datagrams import MobileDatagrams, open_datagrams
    from msocks.client.events import Ended, Event, Moved, Parked, Resumed
    from msocks.client.listener import MobileListener, listen
    from msocks.client.node import MobileNode
    from msocks.client.shared_node import close_nodes
    from msocks.client.streams import MobileStreamWriter, open_connection
    from msocks.errors import (
        AuthenticationError,
        ConfigurationError,
        DestinationError,
        LinkUnavailable,
        ListenError,
        MsocksError,
        PinMismatch,
        SessionEnded,
        SessionReset,
    )
    from msocks.session.mobile_effects import MoveCause
    from msocks.values.access_link import AccessLink

_HOMES = {
    "AccessLink": "msocks.values.access_link",
    "AuthenticationError": "msocks.errors",
    "ConfigurationError": "msocks.errors",
    "DestinationError": "msocks.errors",
    "Ended": "msocks.client.events",
    "Event": "msocks.client.events",
    "LinkUnavailable": "msocks.errors",
    "ListenError": "msocks.errors",
    "MobileDatagrams": "msocks.client.datagrams",
    "MobileListener": "msocks.client.listener",
    "MobileNode": "msocks.client.node",
    "MobileSocket": "msocks.client.blocking",
    "MobileStreamWriter": "msocks.client.streams",
    "MoveCause": "msocks.session.mobile_effects",
    "Moved": "msocks.client.events",
    "MsocksError": "msocks.errors",
    "Parked": "msocks.client.events",
    "PinMismatch": "msocks.errors",
    "Resumed": "msocks.client.events",
    "SessionEnded": "msocks.errors",
    "SessionReset": "msocks.errors",
    "close_nodes": "msocks.client.shared_node",
    "create_connection": "msocks.client.blocking",
    "listen": "msocks.client.listener",
    "open_connection": "msocks.client.streams",
    "open_datagrams": "msocks.client.datagrams",
}

__all__ = [
    "AccessLink",
    "AuthenticationError",
    "ConfigurationError",
    "DestinationError",
    "Ended",
    "Event",
    "LinkUnavailable",
    "ListenError",
    "MobileDatagrams",
    "MobileListener",
    "MobileNode",
    "MobileSocket",
    "MobileStreamWriter",
    "MoveCause",
    "Moved",
    "MsocksError",
    "Parked",
    "PinMismatch",
    "Resumed",
    "SessionEnded",
    "SessionReset",
    "__version__",
    "close_nodes",
    "create_connection",
    "listen",
    "open_connection",
    "open_datagrams",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
