"""The outbound direction of a leg stream: what is retained, which leg it goes to, what its peer has ACKed.

It closes no socket: methods that let go of legs return them, and the stream decides.
"""

from __future__ import annotations

import contextlib
import socket

from msocks.session.byte_budget import ByteBudget
from msocks.session.retention import Retention
from msocks.transport.leg import Leg
from msocks.transport.ring_retention import RingRetention

# Asking the kernel what was ACKed costs a system call: not for every write.
_RELEASE_STEP_BYTES = 256 * 1024
# More than this waiting in user space, and the source of the stream is not read: back-pressure.
UNSENT_LIMIT_BYTES = 256 * 1024


class Outbound:
    """See the module. Offsets are absolute, in bytes; a FIN counts in none."""

    def __init__(self, budget: ByteBudget | None, ring: RingRetention | None = None) -> None:
        """What is held counts in `budget`; it is held in `ring` where that is given, which counts it itself."""
        self.leg: Leg | None = None  # the one that is sent on
        self.finishing = False  # a FIN follows the last byte
        self.frozen = False  # nothing is forgotten while a reconnect is under way
        self.paused = False  # nothing new goes to the present leg, a FIN neither; the next leg, or stop(), ends that
        self._budget = budget
        self._retention: Retention | RingRetention = Retention(budget) if ring is None else ring
        self._tails: list[Leg] = []  # replaced by a handover, not yet ACKed to the end; oldest first
        self._sent_highest = 0
        self._confirmed = 0  # the other end has said that it has everything before
        self._end_confirmed = False  # and the FIN
        self._release_at = _RELEASE_STEP_BYTES
        self._holds_at: int | None = None  # the first flight's end, where it is not known yet what follows

    def begin_at(self, offset: int, sent: int) -> None:
        """Everything before has arrived already, by other ways, which have sent up to `sent`. Before the first leg."""
        self._retention.begin_at(offset)
        self._sent_highest = sent

    def resume_on(self, leg: Leg, tails: list[Leg]) -> None:
        """Go on with legs that another process has sent on. Before the first leg."""
        self.leg, self._tails = leg, tails

    @property
    def tails(self) -> tuple[Leg, ...]:
        """Legs that were replaced by a handover and are not yet ACKed to the end, oldest first."""
        return tuple(self._tails)

    def begins_anew(self) -> None:
        """All that is retained may have been sent by a leg that nobody knows of. Before the first leg."""
        self._sent_highest = self._retention.end

    @property
    def base(self) -> int:
        """Everything before is known to have arrived, and forgotten."""
        return self._retention.base

    @property
    def written(self) -> int:
        """Bytes accepted from the writer."""
        return self._retention.end

    @property
    def retained(self) -> int:
        """Bytes held in memory."""
        return self._retention.retained

    @property
    def unsent(self) -> int:
        """Bytes that the present leg has not taken."""
        return self._retention.unsent

    @property
    def room(self) -> int:
        """Bytes that the writer may append now."""
        if self.finishing or self.unsent >= UNSENT_LIMIT_BYTES:
            return 0
        room = UNSENT_LIMIT_BYTES if self._budget is None else max(0, self._budget.room_for(self.retained))
        return room if isinstance(self._retention, Retention) else min(room, self._retention.free)

    @property
    def waits_for_budget(self) -> bool:
        """Whether there would be room after an ACK on the present leg, or when others hold less."""
        return self.leg is not None and not self.finishing and self.unsent < UNSENT_LIMIT_BYTES and self.room == 0

    @property
    def sent(self) -> int:
        """Bytes that any leg's kernel has taken."""
        return max(self._sent_highest, self._retention.sent)

    @property
    def sent_now(self) -> int:
        """Bytes up to what the present leg's kernel has taken."""
        return self._retention.sent

    @property
    def handing_over(self) -> bool:
        """Whether a replaced leg still has bytes on the way."""
        return bool(self._tails)

    @property
    def outstanding(self) -> bool:
        """Whether a leg is sent on, and not everything that it has to bring has been ACKed."""
        return self.leg is not None and (self.handing_over or self.retained > 0 or self.finishing)

    @property
    def awaits_word(self) -> bool:
        """Whether something is on the way, or has arrived, of which no ACK can tell."""
        legs = self._tails if self.leg is None else [*self._tails, self.leg]
        return any(leg.split for leg in legs) and (self.retained > 0 or (self.finishing and not self._end_confirmed))

    def confirm(self, received: int, at_end: bool) -> None:
        """The other end has said that it has everything before `received`, and the FIN. What cannot be is ignored."""
        if received <= self.sent:
            self._confirmed = max(self._confirmed, received)
            self._end_confirmed = self._end_confirmed or (at_end and self.finishing and received == self.written)

    def uses(self, leg: Leg) -> bool:
        """Whether bytes go, or went and are not ACKed, over a leg."""
        return leg is self.leg or leg in self._tails

    def check(self, offset: int) -> None:
        """Raise ValueError unless a leg can begin at `offset`."""
        if not self._retention.base <= offset <= max(self._retention.end, self._sent_highest):
            raise ValueError(
                f"offset {offset} is not retained (bytes {self._retention.base} to {self._retention.end} are)"
            )

    def append(self, data: bytes) -> None:
        """Add to the end of the stream."""
        self._retention.append(data)

    def push(self) -> bool:
        """Send what the leg takes, the FIN included; whether it took anything. Raises OSError where the leg is dead."""
        leg, retention = self.leg, self._retention
        if leg is None or leg.failed or self.paused:
            return False
        before = retention.sent
        with contextlib.suppress(BlockingIOError):  # EPOLLOUT will tell
            while (view := retention.next_unsent()) is not None and retention.sent != self._holds_at:
                if self._holds_at is not None:
                    view = view[: self._holds_at - retention.sent]
                retention.mark_sent(leg.sock.send(view))
            if self.finishing and not leg.fin_sent and self._holds_at is None:
                leg.sock.shutdown(socket.SHUT_WR)
                leg.fin_sent = True
        return retention.sent != before

    def replace(
        self, leg: Leg, begins_at: int, overhead: int, *, handover: bool, split: bool, first_flight: int = 0
    ) -> list[Leg]:
        """Send on another leg, from `begins_at` on; returns the legs that nothing is sent on any more.

        With `first_flight` no more bytes than that, and no FIN, until `go_on`.

        Raises ValueError when `begins_at` is not retained.
        """
        self.check(begins_at)
        old = self.leg
        done = self.stop()
        if handover and old is not None:
            old.handed_over = True
            self._tails.append(old)
        else:
            done += self.drop_tails()
            if old is not None:
                done.append(old)
        leg.begins_at, leg.overhead, leg.split = begins_at, overhead, split
        if begins_at > self._retention.end:
            self._retention.skip_to(begins_at)  # other ways have brought it there
        else:
            self._retention.rewind(begins_at)
        self.leg = leg
        self._holds_at = begins_at + first_flight if first_flight else None
        return done

    def go_on(self, begins_at: int) -> None:
        """The first flight of the present leg was sent, and its bytes count from `begins_at` on: send what follows.

        Raises ValueError where that is not retained.
        """
        leg, holds_at = self.leg, self._holds_at
        if leg is None or holds_at is None:
            return  # the leg is dead already
        if begins_at != leg.begins_at:
            self._sent_highest = max(self._sent_highest, holds_at)
            self._retention.rewind(holds_at - leg.begins_at + begins_at)
            leg.begins_at = begins_at
        self._holds_at = None

    def resume(self, leg: Leg) -> list[Leg]:
        """Go back to an earlier leg after an attempt that came to nothing; returns as `replace` does."""
        abandoned, done = self.leg, self.stop()
        if leg in self._tails:
            self._tails.remove(leg)
            leg.handed_over = False
        self._retention.rewind(leg.sent_until)
        self.leg = leg
        return done + ([abandoned] if abandoned is not None and abandoned is not leg else [])

    def stop(self) -> list[Leg]:
        """Send nothing more on the present leg; returns the tails that are done."""
        done = self.release()
        self.paused = False
        self._holds_at = None
        if self.leg is not None:
            self.leg.sent_until = self._retention.sent
            self._sent_highest = max(self._sent_highest, self.leg.sent_until)
            self.leg = None
        return done

    def forget(self, leg: Leg) -> None:
        """A leg is gone, whatever was on it."""
        if self.leg is leg:
            self.leg = None
        if leg in self._tails:
            self._tails.remove(leg)

    def discard(self) -> None:
        """Hold nothing any more."""
        self._retention.discard()

    def drop_tails(self) -> list[Leg]:
        """Count on nothing that replaced legs were to bring; returns them."""
        tails, self._tails = self._tails, []
        return tails

    def release_when_due(self) -> list[Leg]:
        """As `release`, but only after enough has been sent for it to be worth a system call."""
        if self._retention.retained < self._release_at:
            return []
        done = self.release()
        self._release_at = 2 * self._retention.retained + _RELEASE_STEP_BYTES
        return done

    def release(self) -> list[Leg]:
        """Forget what was ACKed, in the order of the stream; returns the tails that are done.

        While no leg is sent on nothing is forgotten: a new leg is told where it may begin, and has to find that there.
        """
        done: list[Leg] = []
        if self.frozen or self.leg is None:
            return done
        while self._tails:
            tail = self._tails[0]
            acknowledged = self._arrived(tail, tail.sent_until)
            self._retention.release(acknowledged)
            if acknowledged < tail.sent_until:
                return done
            done.append(self._tails.pop(0))
        self._retention.release(self._arrived(self.leg, self._retention.sent))
        return done

    def _arrived(self, leg: Leg, sent: int) -> int:
        """Offset up to which what was sent on a leg has arrived, out of `sent`."""
        return min(self._confirmed, sent) if leg.split else leg.acknowledged_until(sent)

    def all_acknowledged(self) -> bool:
        """Whether the FIN was ACKed, and so everything."""
        return (
            self.finishing
            and self.leg is not None
            and not self.frozen
            and self.retained == 0
            and (self._end_confirmed if self.leg.split else self.leg.all_acknowledged())
        )
