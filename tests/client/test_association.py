"""What a client and the proxy share, and how it survives a proxy that forgets and refusals that anybody can forge."""

from __future__ import annotations

import asyncio

import pytest

from msocks.client.association import Association, AssociationKeys
from msocks.errors import AuthenticationError, ControlUnavailable
from msocks.protocol.clock import LEG_LIFETIME_MS
from msocks.protocol.control import Welcome
from msocks.values.endpoint import Endpoint
from msocks.values.ids import AssociationId


def welcome(association: Association, key: int = 1, proxy_ms: int = 1000) -> Welcome:
    """The proxy's answer; `key` tells one incarnation of it from another."""
    return Welcome(
        association=association.id,
        key_up=bytes([key]) * 32,
        key_down=bytes([key + 100]) * 32,
        proxy_ms=proxy_ms,
        detach_grace_s=60,
        max_sessions=0,
        observed=Endpoint.of("198.51.100.1", 4711),
        server_version="1",
    )


def keys(key: int) -> AssociationKeys:
    return AssociationKeys(bytes([key]) * 32, bytes([key + 100]) * 32)


def soon(action: object, *arguments: object) -> None:
    asyncio.get_running_loop().call_later(0.01, action, *arguments)  # type: ignore[arg-type]


async def test_the_first_welcome_makes_it_ready():
    association = Association()
    assert association.keys is None
    soon(association.welcomed, welcome(association), association.hello_number())
    assert await association.wait_ready(1) == keys(1)
    assert association.ready.is_set()
    assert association.welcome is not None
    assert association.welcome.detach_grace_s == 60
    assert repr(association.keys) == "AssociationKeys()", "keys never go into a log"


async def test_without_a_proxy_waiting_ends():
    with pytest.raises(ControlUnavailable):
        await Association().wait_ready(0.01)


async def test_a_refusal_of_the_proxy_ends_waiting_at_once_and_later_too():
    association = Association()
    refusal = AuthenticationError("no such user")
    soon(association.refused, refusal)
    for _ in range(2):
        with pytest.raises(AuthenticationError, match="no such user"):
            await association.wait_ready(1)
    association.welcomed(welcome(association), association.hello_number())
    assert association.refusal is None
    assert await association.wait_ready(1) == keys(1)


async def test_numbers_only_rise_even_under_new_keys():
    association = Association()
    legs = [association.next_leg_number() for _ in range(3)]
    association.welcomed(welcome(association, 1), association.hello_number())
    association.welcomed(welcome(association, 2), association.hello_number())
    legs += [association.next_leg_number() for _ in range(3)]
    probes = [association.next_probe_number() for _ in range(3)]
    assert legs == sorted(set(legs))
    assert probes == sorted(set(probes))


async def test_an_expiry_is_the_proxys_time():
    association = Association()
    association.welcomed(welcome(association, proxy_ms=5_000_000), association.hello_number())
    assert 0 <= association.expiry_ms() - 5_000_000 - LEG_LIFETIME_MS < 1000
    association.clock_told(77)
    assert 0 <= association.expiry_ms() - 77 - LEG_LIFETIME_MS < 1000


async def test_channels_that_race_agree_and_the_later_hello_decides():
    """The answer to the first HELLO, of a proxy that is no more, comes last."""
    association = Association()
    first, second = association.hello_number(), association.hello_number()
    association.welcomed(welcome(association, 2), second)
    association.welcomed(welcome(association, 1), first)
    assert association.keys == keys(2)


async def test_a_welcome_about_another_identifier_is_ignored():
    association = Association()
    stranger = Association()
    association.welcomed(welcome(stranger), association.hello_number())
    assert association.keys is None


async def test_an_identifier_that_is_taken_is_replaced():
    association = Association()
    before: AssociationId = association.id
    association.welcomed(welcome(association), association.hello_number())
    association.taken()
    assert association.id != before
    assert association.keys is None
    assert not association.ready.is_set()


async def test_renewal_after_a_restart_brings_new_keys():
    association = Association()
    association.welcomed(welcome(association, 1), association.hello_number())
    asked = []
    association.on_doubt(lambda: asked.append(1))
    soon(association.welcomed, welcome(association, 2), association.hello_number())
    assert await association.renew(keys(1), 1) == keys(2)
    assert asked == [1]


async def test_renewal_of_keys_that_are_old_already_asks_nobody():
    association = Association()
    association.welcomed(welcome(association, 2), association.hello_number())
    association.on_doubt(lambda: pytest.fail("asked for nothing"))
    assert await association.renew(keys(1), 1) == keys(2)


async def test_a_forged_refusal_changes_nothing():
    """The proxy says on a channel that it knows the association: the keys are good, and were all the time."""
    association = Association()
    association.welcomed(welcome(association, 1), association.hello_number())
    soon(association.confirmed)
    renewal = asyncio.create_task(association.renew(keys(1), 1))
    await asyncio.sleep(0)
    assert association.keys == keys(1)
    assert association.ready.is_set()
    assert await renewal == keys(1)


async def test_renewal_ends_where_the_proxy_is_gone_or_refuses():
    association = Association()
    association.welcomed(welcome(association, 1), association.hello_number())
    with pytest.raises(ControlUnavailable):
        await association.renew(keys(1), 0.01)
    soon(association.refused, AuthenticationError("removed"))
    with pytest.raises(AuthenticationError, match="removed"):
        await association.renew(keys(1), 1)
    assert association.keys == keys(1)
