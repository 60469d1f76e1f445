"""The error of a host that does not let the splice do what it needs."""

from __future__ import annotations

from msocks.errors import MsocksError
from msocks.protocol.leg import DatapathReason


class SpliceRefused(MsocksError):
    """This host refuses something without which nothing can be spliced.

    Attributes:
        reason: What a leg's reply says of it: NO_PRIVILEGE, NO_KERNEL_SUPPORT or NO_ROOM.
    """

    def __init__(self, what: str, *, remedy: str, reason: DatapathReason) -> None:
        super().__init__(what, remedy=remedy)
        self.reason = reason
