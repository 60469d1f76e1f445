"""How far an outbound stream has come: written, sent, and arrived, also where a middlebox ACKs in the peer's place."""

from __future__ import annotations

from msocks.transport.outbound import Outbound


class OutboundProgress:
    """The part of a leg stream that tells this, and that goes by the other end's word: see `LegStream.send_on`."""

    _out: Outbound

    @property
    def written(self) -> int:
        """Outbound bytes accepted from the writer."""
        return self._out.written

    @property
    def sent(self) -> int:
        """Outbound bytes that any leg's kernel has taken; the peer cannot have received more."""
        return self._out.sent

    @property
    def sent_now(self) -> int:
        """Outbound bytes up to what the present leg's kernel has taken: where a handover begins."""
        return self._out.sent_now

    @property
    def retained(self) -> int:
        """Outbound bytes held in memory."""
        return self._out.retained

    @property
    def acks_tell(self) -> bool:
        """Whether a leg is sent on whose ACKs are the other end's for certain."""
        return self._out.leg is not None and not self._out.leg.split

    @property
    def awaits_word(self) -> bool:
        """Whether the other end has to say what has arrived: see `confirm`."""
        return self._out.awaits_word

    def distrust(self) -> None:
        """The ACKs on the leg that sends now are a middlebox's."""
        if self._out.leg is not None:
            self._out.leg.split = True

    def trust(self) -> None:
        """The ACKs on the leg that sends now are the other end's after all."""
        if self._out.leg is not None:
            self._out.leg.split = False

    def confirm(self, received: int, at_end: bool) -> None:
        """Authenticated word of the other end: it has so many outbound bytes, and the FIN. Nonsense is ignored."""
        self._out.confirm(received, at_end)
        self.sweep()

    def sweep(self) -> bool:
        """Let go of what has arrived."""
        raise NotImplementedError
