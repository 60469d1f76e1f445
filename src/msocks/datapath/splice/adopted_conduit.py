"""The conduit of a session that an earlier process of the proxy has spliced."""

from __future__ import annotations

from msocks.datapath.interface import ConduitOwner, Survivor
from msocks.datapath.splice import flows
from msocks.datapath.splice.adoption import GRACE_S, AdoptedLeg, what_is_missing
from msocks.datapath.splice.conduit import SpliceConduit
from msocks.datapath.splice.host import SpliceHost
from msocks.datapath.splice.layout import SERVER, LegState, SessionFlag
from msocks.datapath.splice.server_legs import Preparation
from msocks.datapath.splice.speech import ends


class AdoptedConduit(SpliceConduit):
    """As any other, from where it stands."""

    __slots__ = ()

    def __init__(self, host: SpliceHost, survivor: Survivor, owner: ConduitOwner, *, resumable: bool) -> None:
        session = host.tables.session(survivor.place)
        local, remote = ends(session.legs[SERVER])
        preparation = Preparation(
            survivor.place, session, session.incarnation, remote, local[1], lambda: None, taken=True
        )
        super().__init__(host, None, owner, preparation, resumable=resumable)
        if not resumable:
            session.flags &= ~SessionFlag.RESUMABLE
        self._generation = survivor.generation
        if not session.handover.from_leg:  # else it is part of that, and goes when that ends
            for number, leg in enumerate(session.legs):
                if number not in (SERVER, session.active) and leg.state == LegState.HANDSHAKE:
                    flows.take_out(host.tables, leg)  # its socket has died with the process
        self._takeover = AdoptedLeg(host, session)
        host.enter(survivor.place, self)
        if what_is_missing(session):
            host.reactor.loop.call_later(GRACE_S, self._look_for_loss)

    def _look_for_loss(self) -> None:
        if not self._over and not self._closed and (reason := what_is_missing(self._session)):
            self._tell_last(lambda: self._owner.on_bytes_lost(reason))
