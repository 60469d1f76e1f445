"""The association as legs need it: keys, numbers, clock, and what to do when the proxy no longer knows it."""

from __future__ import annotations

import asyncio

from msocks.client.association import Association, AssociationKeys
from msocks.errors import MsocksError
from msocks.values.ids import AssociationId

_RENEWAL_S = 10.0


class NodeAuthority:
    """Implements `msocks.client.connection.Authority`; use it only while the association has keys."""

    def __init__(self, association: Association, loop: asyncio.AbstractEventLoop) -> None:
        self._association = association
        self._loop = loop
        self._renewal: asyncio.Task[None] | None = None

    @property
    def id(self) -> AssociationId:
        """What the proxy knows the keys by."""
        return self._association.id

    @property
    def key_up(self) -> bytes:
        """Authenticates requests."""
        return self._keys().up

    @property
    def key_down(self) -> bytes:
        """Authenticates replies."""
        return self._keys().down

    def next_leg_number(self) -> int:
        """A number that no leg of this association had."""
        return self._association.next_leg_number()

    def next_udp_flow(self) -> int:
        """A number that no UDP flow of this association had."""
        return self._association.next_udp_flow()

    def expiry_ms(self) -> int:
        """The proxy's time until which a request that is written now is good."""
        return self._association.expiry_ms()

    def proxy_time_is(self, proxy_ms: int) -> None:
        """A verified reply told the proxy's time."""
        self._association.clock_told(proxy_ms)

    def forgotten(self, key_up: bytes) -> None:
        """A request signed with `key_up` was refused, unverifiably: ask where the answer can be believed."""
        keys = self._association.keys
        if keys is None or keys.up != key_up or (self._renewal is not None and not self._renewal.done()):
            return
        self._renewal = self._loop.create_task(self._renew(keys))

    def close(self) -> None:
        """Ask no more."""
        if self._renewal is not None:
            self._renewal.cancel()

    async def _renew(self, used: AssociationKeys) -> None:
        try:
            await self._association.renew(used, _RENEWAL_S)
        except MsocksError:
            return  # the next refused leg asks again

    def _keys(self) -> AssociationKeys:
        keys = self._association.keys
        assert keys is not None  # see the class
        return keys
