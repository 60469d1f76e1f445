"""Those who want a leg at the same moment take turns; the test plays the proxy at the other ends of real sockets."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from tests.client.played_proxy import RTT_S, Far, Node, living

from msocks.client.dial_gates import DialGates
from msocks.protocol.leg import Reconnect
from msocks.session.mobile_effects import SessionState
from msocks.session.patience import ATTEMPT_MARGIN_S

_SOON_S = 0.1
_LONGER_THAN_AN_ANSWER_MAY_TAKE_S = 2 * (ATTEMPT_MARGIN_S + 4 * RTT_S["lte"])


async def parked(stack: AsyncExitStack, count: int, gates: DialGates) -> list[Node]:
    """Connections that had a leg each over Wi-Fi, and want one over LTE now."""
    nodes = [await stack.enter_async_context(living(gates)) for _ in range(count)]
    for node in nodes:
        node.links("wifi")
        far, _ = await node.leg()
        far.accept(down_from=0, behind=b"a")
        await node.until_received(b"a")
    for node in nodes:
        node.links()
        node.links("lte")
    await asyncio.sleep(_SOON_S)
    return nodes


async def asked(node: Node) -> Far:
    far, request = await node.leg()
    assert isinstance(request, Reconnect)
    return far


async def test_no_more_legs_are_asked_for_at_a_time_than_the_gate_lets_through() -> None:
    async with AsyncExitStack() as stack:
        first, second, third, fourth = await parked(stack, 4, DialGates(2))
        legs = [await asked(first), await asked(second)]
        assert third.legs.empty()
        legs[0].accept(down_from=1)
        legs.append(await asked(third))
        await asyncio.sleep(_SOON_S)
        assert fourth.legs.empty()
        legs[1].accept(down_from=1)
        legs.append(await asked(fourth))
        for leg in legs[2:]:
            leg.accept(down_from=1, behind=b"b")
        await third.until_received(b"ab")
        await fourth.until_received(b"ab")


async def test_who_waits_for_a_turn_is_not_out_of_time_meanwhile() -> None:
    gates = DialGates(1)
    async with AsyncExitStack() as stack:
        async with gates.at("lte"):  # somebody's
            (node,) = await parked(stack, 1, gates)
            await asyncio.sleep(_LONGER_THAN_AN_ANSWER_MAY_TAKE_S)
            assert node.legs.empty()
            assert (node.connection.state, node.connection.generation) == (SessionState.PARKED, 2)
        leg = await asked(node)
        leg.accept(down_from=1, behind=b"b")
        await node.until_received(b"ab")
        assert node.connection.generation == 2
        assert node.legs.empty()


async def test_whose_link_goes_while_it_waits_leaves_the_row() -> None:
    async with AsyncExitStack() as stack:
        first, second, third = await parked(stack, 3, DialGates(1))
        leg = await asked(first)
        second.links()
        leg.accept(down_from=1)
        third_leg = await asked(third)
        third_leg.accept(down_from=1, behind=b"b")
        await third.until_received(b"ab")
        assert second.legs.empty()
        second.links("lte")
        again = await asked(second)
        again.accept(down_from=1, behind=b"b")
        await second.until_received(b"ab")
