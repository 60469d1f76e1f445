"""What of an outbound stream has arrived, where a middlebox on the way ACKs in the other end's place."""

from __future__ import annotations

from msocks.transport.outbound import Outbound


class Confirmed:
    """The part of a leg stream that goes by the other end's word instead of by ACKs; see `LegStream.send_on`."""

    _out: Outbound

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
