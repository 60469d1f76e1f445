"""One node per event loop and access link, for programs that do not want to keep one themselves."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

from msocks.client.node import MobileNode
from msocks.values.access_link import AccessLink

_nodes: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[AccessLink, MobileNode]] = WeakKeyDictionary()


async def shared_node(access: AccessLink) -> MobileNode:
    """The running loop's node for `access`, made at the first call; close_nodes() ends it."""
    nodes = _nodes.setdefault(asyncio.get_running_loop(), {})
    node = nodes.get(access)
    if node is None:
        node = nodes[access] = MobileNode(access)
        await node.start()
    return node


async def close_nodes() -> None:
    """Close the nodes that open_connection() has made on the running loop.

    For programs that go on without connections; a program that ends needs it not.
    """
    nodes = _nodes.pop(asyncio.get_running_loop(), {})
    for node in nodes.values():
        await node.close()
