"""The life of a session from its middle on: another process had it before."""

from __future__ import annotations

from msocks.session.mobile import MobileSession, _Leg
from msocks.session.mobile_effects import MoveCause


class AdoptedSession(MobileSession):
    """A `MobileSession` that was live already; with `has_leg`, it still is, on `link`."""

    def __init__(self, destination: str, *, generation: int, link: str, has_leg: bool, moves: int) -> None:
        super().__init__(destination)
        self._generation = generation
        self._was_live = True
        self._leg = _Leg(generation, link) if has_leg else None
        self._last_link = self._last_link_of_leg = link
        self._lost_by = MoveCause.LEG_LOST
        self.moves = moves
