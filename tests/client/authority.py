"""Keys and leg numbers of an association that no proxy has given."""

from __future__ import annotations

from typing import Self

from msocks.values.ids import AssociationId


class OwnAuthority:
    """Implements `msocks.client.network.Authority`, and whoever inherits it is its own."""

    key_up = b"u" * 32
    key_down = b"d" * 32

    def __init__(self) -> None:
        self.id = AssociationId.generate()
        self.times: list[int] = []  # of the proxy, as replies told them
        self._numbers = 0

    @property
    def authority(self) -> Self:
        return self

    def next_leg_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def expiry_ms(self) -> int:
        return 30_000

    def proxy_time_is(self, proxy_ms: int) -> None:
        self.times.append(proxy_ms)

    def forgotten(self, key_up: bytes) -> None: ...
