"""Does this path still carry anything? Decided from probes and from whatever else arrives over it; sans-IO.

A link can keep carrier, address and route while every packet vanishes. A path is called *silent* when several probes in
a row have stayed unanswered past a deadline that follows the measured round-trip time, and nothing else was received
since the first of them was sent. Everything that arrives, a byte, an ACK, an answer however late, excuses the probes
sent before it: a queue that fills makes answers late, but then they do come.

Where bytes have come densely until a moment ago, a queue is no excuse for silence: what is ahead of the answer in it
would be heard, or its ACKs. There the deadline follows the round-trip time of calm moments.

How often to ask follows from how long ago traffic was seen: a path that carried something a moment ago is asked within
a few round trips; one idle for minutes, every 15 s; an idle metered one, not at all. What has arrived just now is as
good as an answer, so a busy path costs next to no probes.

Times are seconds of one monotonic clock, which the caller reads.
"""

from __future__ import annotations

import math

from msocks.session.path_loss import PathLoss
from msocks.session.path_samples import Arrivals, RoundTripTime, SentProbe
from msocks.session.path_state import Means, PathState, Tariff

NEEDED_LEAST = 4
NEEDED_MOST = 8
FALSE_ALARM = 1e-7
"""The chance, for each probe, that independent losses alone look like a silent path."""

DEADLINE_LEAST_S = 0.05
DEADLINE_MOST_S = 5.0
DEADLINE_UNPROVEN_S = 1.0
"""Before the first sample; the initial RTO of RFC 6298 section 2."""
DEADLINE_COLD_S = 0.5
"""At least, after a pause: a mobile radio needs up to about this to leave its idle state."""
COLD_AFTER_S = 5.0
MARGIN_S = 0.07
"""Beyond srtt + 4 rttvar: timers, schedulers, and a busy proxy."""
MARGIN_MOST_S = 0.8
MARGIN_HALVES_AFTER_S = 600.0

BUSY_LEAST_S = 0.05
BUSY_MOST_S = 0.25
BURST_LEAST_S = 0.02
BURST_MOST_S = 0.1
DOUBT = 1.5
"""For so many intervals of a burst after something was asked because of a miss, no path is called silent: who looks
late sees several misses at once, and has not asked by other means yet."""
HUSH = 3
"""For so many intervals after its last traffic, a busy path that is quiet is asked in a burst."""
DENSE_S = 0.05
"""No pause of late was longer where bytes come densely."""
SAMPLE_S = 0.1
"""While other bytes arrive, a probe is sent this often to measure the round-trip time."""
IDLE_SHARE = 8
"""A path that has been idle for this many seconds is asked once a second, and so on in proportion."""
IDLE_MOST_S = 15.0
IDLE_METERED_S = 60.0
UNPROVEN_INTERVAL_S = 0.1
UNPROVEN_INTERVAL_MOST_S = 5.0
SILENT_INTERVAL_S = 0.1
SILENT_INTERVAL_MOST_S = 2.0
"""Where flows have no other path; where they have, or there are none, the intervals below."""
SPARE_INTERVAL_S = 0.2
SPARE_INTERVAL_MOST_S = 5.0
UNWANTED_INTERVAL_S = 0.5

ANSWERS_TO_RETURN = 3
RETURN_AFTER_S = 0.3
RETURN_AFTER_MOST_S = 3.0
FLAP_MEMORY_S = 60.0

REFUSED_S = 3.0  # unanswered probes say nothing for so long: hosts send few ICMP errors, Linux one a second
UDP_GIVEN_UP_AFTER = 6
UDP_RETRY_S = 30.0
_FORGET_PROBE_S = 10.0


class PathHealth:
    """See the module. Call `advance` whenever `next_event` is due, or earlier.

    Attributes:
        state: What is known of the path.
        rtt: Round-trip time.
        loss: Of what is sent; whoever sends on legs tells it of them.
        udp_blocked: Whether UDP probes stay unanswered although the path lives; then the control channel is used.
        wanted: Whether somebody waits for this path to come back (flows without a better one); set by the caller.
        heard_at: When anything was received last, or minus infinity.
        tariff: What asking costs; set by the caller.
        alone: Whether no other path is alive, so that the first sign of life is enough; set by the caller.
    """

    def __init__(self, now: float, tariff: Tariff = Tariff.FREE) -> None:
        self.state = PathState.UNPROVEN
        self.rtt = RoundTripTime()
        self.loss = PathLoss()
        self.udp_blocked = False
        self.wanted = False
        self.alone = False
        self.tariff = tariff
        self._began_at = now
        self._probes: dict[int, SentProbe] = {}
        self._sent_at = -math.inf
        self.heard_at = -math.inf
        self._heard_tcp_at = -math.inf  # anything but an answer to a UDP probe
        self._doubted_at = -math.inf  # when something was asked first because of misses that nothing excused
        self._traffic_at = now - 1.0  # a new path is worth a few samples
        self._legs = False
        self._excused_until = -math.inf
        self._control_asked_at = -math.inf
        self._udp_sent_at = -math.inf
        self._udp_answered = False
        self._udp_lost: list[float] = []  # when the UDP probes were sent that went unanswered in a row
        self._margin_s = MARGIN_S
        self._margin_raised_at = now
        self._arrivals = Arrivals()
        self._silent_since = math.inf
        self._silent_ended_at = -math.inf
        self._flaps = 0
        self._answers = 0  # signs of life in a row while silent
        self._first_answer_at = math.inf
        self._last_answer_at = -math.inf

    # -- events -----------------------------------------------------------------------------------------------------

    def on_probe_sent(self, now: float, number: int, means: Means) -> None:
        """A probe has left, by one of the means. Numbers are never used twice; those sent by two means at a time share
        `now`.
        """
        over_udp = means is Means.UDP
        if over_udp:
            self._udp_sent_at = now
        else:
            self._control_asked_at = now
        self._sent_at = now
        self._probes[number] = SentProbe(
            now,
            over_udp,
            is_cold=now - self.heard_at > COLD_AFTER_S,
            is_calm=now - self.heard_at > DENSE_S,
            counts=not (over_udp and self.udp_blocked),
            tells_loss=self.state is PathState.ALIVE and not self.udp_blocked,
        )

    def on_mute(self, now: float) -> None:
        """What `advance` asked for could not be sent: the path offers no such means at present."""
        self._sent_at = now

    def on_answer(self, now: float, number: int) -> None:
        """The answer to a probe has arrived, however late; `now` may be the past. Unknown numbers are ignored."""
        probe = self._probes.pop(number, None)
        if probe is None:
            return
        rtt_s = now - probe.sent_at
        beyond_s = rtt_s - (self.rtt.smoothed_s or 0.0) - 4 * self.rtt.variation_s
        if self._is_measurement(probe, rtt_s):
            self.rtt.sample(now, rtt_s, calm=probe.is_calm)
        self.loss.on_probe(lost=False)
        if probe.over_udp:
            self.udp_blocked = False
            self._udp_answered = True
            self._udp_lost.clear()
            if self.state is PathState.SILENT and probe.was_overdue and probe.sent_at < self._silent_since:
                self._raise_margin(now, beyond_s)
        else:
            self._heard_tcp_at = max(self._heard_tcp_at, now)
        self._on_sign_of_life(now)

    def on_heard(self, now: float) -> None:
        """Something else has arrived over the path: a byte, or an ACK."""
        if now > self._heard_tcp_at:
            self._heard_tcp_at = now
            self._on_sign_of_life(now)

    def on_refused(self, now: float) -> None:
        """Nobody listens, says the proxy's host: the path lives, the proxy does not."""
        self._excused_until = now + REFUSED_S

    def on_traffic(self, now: float) -> None:
        """The path is in use: bytes were written to it or came from it, or wait for their ACK."""
        self._traffic_at = max(self._traffic_at, now)

    def on_legs(self, has_legs: bool) -> None:
        """Whether the path carries flows, idle ones included."""
        self._legs = has_legs

    # -- decisions --------------------------------------------------------------------------------------------------

    def advance(self, now: float) -> Means:
        """Draw the conclusions that time has made possible, and say what to send now."""
        self._forget_probes(now)
        self._arrivals.look(now, self.heard_at)
        overdue = self._overdue(now)
        for probe in self._probes.values():
            if not probe.was_overdue and now >= probe.sent_at + self._patience_s(probe):
                probe.was_overdue = True
                if probe.over_udp:
                    self._on_udp_lost(probe)
        moments = {probe.sent_at for probe in overdue}  # what is sent at once is lost at once
        in_doubt_s = now - self._doubted_at if self._doubted_at > self.heard_at else 0.0
        condemned = len(moments) >= self._needed() and in_doubt_s >= DOUBT * self._burst_s()
        if self.state is not PathState.SILENT and condemned:
            self._fall_silent(now)
        elif self.state is PathState.SILENT and any(probe.sent_at >= self._first_answer_at for probe in overdue):
            self._answers, self._first_answer_at = 0, math.inf
        if now < self._probe_due_at(now):
            return Means.NOTHING
        if overdue and self._doubted_at <= self.heard_at:
            self._doubted_at = now
        return self._means(now, suspicious=bool(overdue))

    def next_event(self, now: float) -> float:
        """When `advance` may have something to say, if nothing happens before; infinity where never."""
        judged = (probe.sent_at + self._patience_s(probe) for probe in self._probes.values() if not probe.was_overdue)
        return min([self._probe_due_at(now), *judged])

    def is_suspicious(self, now: float) -> bool:
        """Whether an answer is overdue and nothing was received since the question."""
        return bool(self._overdue(now))

    def may_fall_silent(self) -> bool:
        """Whether only what else is heard keeps `advance` from calling the path silent, now or before long."""
        unanswered = {probe.sent_at for probe in self._probes.values() if probe.sent_at >= self.heard_at}
        return len(unanswered) >= NEEDED_LEAST and self.state is not PathState.SILENT

    # -- inside -----------------------------------------------------------------------------------------------------

    def _patience_s(self, probe: SentProbe) -> float:
        """How long the answer may take."""
        if self.rtt.smoothed_s is None:
            return DEADLINE_UNPROVEN_S
        usual = self._with_margin(self._usual_s())
        return max(usual, DEADLINE_COLD_S) if probe.is_cold else usual

    def _usual_s(self) -> float:
        """The most that a round trip takes as long as nothing else is heard."""
        usual = (self.rtt.smoothed_s or DEADLINE_UNPROVEN_S) + 4 * self.rtt.variation_s
        pause_s = self._arrivals.longest_pause_s(self.heard_at)
        return min(usual, self.rtt.calm_s(self.heard_at) + pause_s) if pause_s <= DENSE_S else usual

    def _with_margin(self, usual_s: float) -> float:
        return min(max(usual_s + self._margin_s, DEADLINE_LEAST_S), DEADLINE_MOST_S)

    def _is_measurement(self, probe: SentProbe, rtt_s: float) -> bool:
        """Not where something else was measured: how long a radio takes to wake up, or TCP to send a ping again."""
        if self.rtt.smoothed_s is None or (probe.over_udp and not probe.is_cold):
            return True
        return rtt_s <= self._with_margin(self.rtt.smoothed_s + 4 * self.rtt.variation_s)

    def _overdue(self, now: float) -> list[SentProbe]:
        """The probes that speak for silence: unanswered past their deadline, and nothing was received since."""
        since = max(self.heard_at, self._excused_until)
        return [
            probe
            for probe in self._probes.values()
            if probe.counts and probe.sent_at >= since and now >= probe.sent_at + self._patience_s(probe)
        ]

    def _needed(self) -> int:
        """How many unanswered probes in a row independent losses explain less often than FALSE_ALARM.

        They do not explain that nothing comes any more of what came densely.
        """
        if self._arrivals.longest_pause_s(self.heard_at) <= DENSE_S:
            return NEEDED_LEAST
        return min(max(self.loss.misses(FALSE_ALARM), NEEDED_LEAST), NEEDED_MOST)

    def _probe_due_at(self, now: float) -> float:
        suspicious = self.is_suspicious(now)
        interval = self._interval_s(now, suspicious)
        if self.state is PathState.ALIVE and not suspicious:
            # What has arrived since the last probe is as good as an answer to it.
            quiet = max(self._sent_at, self.heard_at) + interval
            return min(quiet, self._sent_at + max(SAMPLE_S, 2 * interval))
        return self._sent_at + interval

    def _interval_s(self, now: float, suspicious: bool) -> float:
        """The pause after the last probe. It follows from how things were when that was sent, lest it runs away."""
        if self.state is PathState.UNPROVEN:
            share_s = (self._sent_at - self._began_at) / IDLE_SHARE
            return min(max(share_s, UNPROVEN_INTERVAL_S), UNPROVEN_INTERVAL_MOST_S)
        if self.state is PathState.SILENT:
            return self._silent_interval_s()
        smoothed = self.rtt.smoothed_s
        if suspicious:
            return BURST_MOST_S if now - self.heard_at > COLD_AFTER_S else self._burst_s()
        busy = BUSY_LEAST_S if smoothed is None else min(max(self._soonest_s(), BUSY_LEAST_S), BUSY_MOST_S)
        idle_for = self._sent_at - self._traffic_at
        if self.tariff is Tariff.FREE and self._sent_at > self.heard_at and idle_for < HUSH * busy:
            return self._burst_s()
        if self.tariff is Tariff.METERED and idle_for > IDLE_SHARE * IDLE_MOST_S:
            return IDLE_METERED_S if self._legs else math.inf
        return min(max(idle_for / IDLE_SHARE, busy), IDLE_MOST_S)

    def _burst_s(self) -> float:
        return min(max(self._soonest_s() / 2, BURST_LEAST_S), BURST_MOST_S)

    def _soonest_s(self) -> float:
        return min(self.rtt.smoothed_s or BURST_MOST_S, self._usual_s())

    def _silent_interval_s(self) -> float:
        if self._answers:
            return SILENT_INTERVAL_S
        lasts = self._sent_at - self._silent_since
        if self.wanted and self.alone:
            return min(max(lasts / 50, SILENT_INTERVAL_S), SILENT_INTERVAL_MOST_S)
        if self.wanted:
            return min(max(lasts / IDLE_SHARE, SPARE_INTERVAL_S), SPARE_INTERVAL_MOST_S)
        longest = SPARE_INTERVAL_MOST_S if self.tariff is Tariff.FREE else IDLE_METERED_S
        return min(max(lasts / IDLE_SHARE, UNWANTED_INTERVAL_S), longest)

    def _means(self, now: float, suspicious: bool) -> Means:
        means = Means.CONTROL if self.udp_blocked else Means.UDP
        if self.udp_blocked and now - self._udp_sent_at >= UDP_RETRY_S:
            means |= Means.UDP
        if self.rtt.smoothed_s is None and self.state is not PathState.SILENT:
            means |= Means.CONTROL  # whichever answers first
        # A second opinion: UDP alone may be what is blocked. More than one, as long as it never worked here.
        doubtful = self.state is not PathState.SILENT and not self._udp_answered
        if suspicious and (doubtful or self._control_asked_at < self.heard_at):
            means |= Means.CONTROL
        return means

    def _on_sign_of_life(self, now: float) -> None:
        self.heard_at = max(self.heard_at, now)
        if self.state is not PathState.SILENT:
            self.state = PathState.ALIVE
            return
        if self.alone:
            self._return(now)
            return
        if now - self._last_answer_at < SILENT_INTERVAL_S / 2:
            return  # a burst is one sign of life
        self._last_answer_at = now
        self._answers += 1
        self._first_answer_at = min(self._first_answer_at, now)
        hold_s = min(RETURN_AFTER_S * 2 ** (self._flaps - 1), RETURN_AFTER_MOST_S)
        if self._answers >= ANSWERS_TO_RETURN and now - self._first_answer_at >= hold_s:
            self._return(now)

    def _fall_silent(self, now: float) -> None:
        self.state = PathState.SILENT
        self._silent_since = now
        self._flaps = self._flaps + 1 if now - self._silent_ended_at < FLAP_MEMORY_S else 1
        self._answers, self._first_answer_at = 0, math.inf
        for probe in self._probes.values():
            probe.tells_loss = False

    def _return(self, now: float) -> None:
        self.state = PathState.ALIVE
        self._silent_since = math.inf
        self._silent_ended_at = now

    def _raise_margin(self, now: float, beyond_s: float) -> None:
        """The alarm was false: what was late came after all. Be so patient with this path that it would not have been.

        `beyond_s` is by how much the answer came after the usual time. A path whose round trips grow by half a second
        now and then (a cell that is changed, a radio link that sends again) so raises one such alarm, not many.
        """
        if now - self._margin_raised_at > 1.0 or self._margin_s == MARGIN_S:
            self._margin_s = min(max(self._margin_s * 2, beyond_s), MARGIN_MOST_S)
            self._margin_raised_at = now

    def _on_udp_lost(self, probe: SentProbe) -> None:
        self._udp_lost.append(probe.sent_at)
        if len(self._udp_lost) >= UDP_GIVEN_UP_AFTER and self._heard_tcp_at > self._udp_lost[0]:
            self.udp_blocked = True

    def _forget_probes(self, now: float) -> None:
        while self._margin_s > MARGIN_S and now - self._margin_raised_at > MARGIN_HALVES_AFTER_S:
            self._margin_s = max(self._margin_s / 2, MARGIN_S)
            self._margin_raised_at += MARGIN_HALVES_AFTER_S
        for number, probe in list(self._probes.items()):
            if now - probe.sent_at < _FORGET_PROBE_S:
                return
            del self._probes[number]
            if probe.tells_loss:
                self.loss.on_probe(lost=True)
