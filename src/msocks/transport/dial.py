"""Opening a connection to the proxy *through a link*: both directions of it use that interface and no other.

The socket is bound to the device (SO_BINDTODEVICE, open to everybody since Linux 5.7) and to the link's source address.
The proxy's addresses race as in Happy Eyeballs version 2 (RFC 8305), beginning with what worked last on that link, but
with a stagger fit for a path whose round-trip time is known. A lost SYN is a second of silence in Linux: so, where all
addresses are under way and none has answered, the race goes on with a second connection to the first of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, zip_longest

from msocks.errors import LinkUnavailable
from msocks.transport.kernel import prepare_leg
from msocks.transport.reactor import FAILED, WRITABLE, Reactor
from msocks.transport.resolver import Resolver
from msocks.values.endpoint import Endpoint
from msocks.values.link import Family, Link

LEAST_STAGGER_S = 0.05
MOST_STAGGER_S = 0.25
"""RFC 8305 section 5 recommends this where nothing is known of the path."""
MOST_SOCKETS = 6

KEEP_ALIVE_IDLE_S = 110
"""Below the 2 minutes after which the hastiest of the common NATs forget an idle TCP connection. RFC 5382 asks for 2 h 4
min; mobile carriers and home routers in the field are between 2 and 30 min."""
KEEP_ALIVE_INTERVAL_S = 15
KEEP_ALIVE_PROBES = 4

_IP_BIND_ADDRESS_NO_PORT = 24
_LINK_ERRORS = frozenset({errno.ENODEV, errno.EADDRNOTAVAIL, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH})
