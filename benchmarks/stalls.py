"""Stalls, read from the record of a transfer's arrivals and the instants of what happened to it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from msocks_lab.arrival import ArrivalMeter, Gap

WATCHED_S = 2.5
"""How long a transfer has to go on after an event, so that what a move stirs up later still counts."""

AMOUNT_BYTES = 256 * 1024
"""What has to have arrived for `Stall.amount_ms`."""

RATED_S = (0.5, 2.5)
"""The part of the time after an event (after `Moment.usable`) that `Stall.rate_mbit` is of."""

_DIRECT_S = 0.1  # a gap that begins so soon is the event's own: what was in queues still arrives after it
_NOTICEABLE_S = 0.03


class RecordTooShort(Exception):
    """The transfer was over before a stall could have shown."""


@dataclass(frozen=True, slots=True)
class Moment:
    """An event whose stall counts. Instants are seconds of CLOCK_MONOTONIC.

    `usable` is when the link that carries on had carrier, address and route: of a stall only what exceeds that
    counts. None where the link was there all along.
    """

    figure: str
    began: float
    usable: float | None = None


@dataclass(frozen=True, slots=True)
class Stall:
    """What one event did to a transfer, in ms.

    `longest_ms` is the longest gap between two arrivals from the event on, `resumed_ms` the one that the event began
    with; of both, only what comes after `Moment.usable`. `amount_ms` is how long after the event (after `usable`)
    `AMOUNT_BYTES` had arrived that had not before; `rate_mbit` is of payload in `RATED_S`. `gaps` has (begin after the
    event, length) of every gap from 30 ms on.
    """

    figure: str
    longest_ms: float
    resumed_ms: float
    amount_ms: float
    rate_mbit: float
    gaps: tuple[tuple[float, float], ...]


def stalls(meter: ArrivalMeter, moments: list[Moment]) -> list[Stall]:
    """One stall for each moment, up to the next one or to the end of the record. Raises RecordTooShort."""
    ends = [*(moment.began for moment in moments[1:]), float("inf")]
    return [_stall(meter, moment, end) for moment, end in zip(moments, ends, strict=True)]


def _stall(meter: ArrivalMeter, moment: Moment, end: float) -> Stall:
    counts_from = moment.began if moment.usable is None else moment.usable
    if min(meter.times[-1], end) < counts_from + WATCHED_S:
        raise RecordTooShort(f"The transfer was watched for less than {WATCHED_S} s after {moment.figure}")
    gaps = list(meter.gaps(since=moment.began, until=end))

    def counted_ms(gap: Gap) -> float:
        seconds = gap.seconds if moment.usable is None else gap.ended - moment.usable
        return round(seconds * 1000, 1)

    def by_length(gap: Gap) -> float:
        return gap.seconds

    return Stall(
        figure=moment.figure,
        longest_ms=counted_ms(max(gaps, key=by_length)),
        resumed_ms=counted_ms(max((gap for gap in gaps if gap.began < moment.began + _DIRECT_S), key=by_length)),
        amount_ms=_amount_ms(meter, moment.began, counts_from),
        rate_mbit=_rate_mbit(meter, counts_from),
        gaps=tuple(
            (round((gap.began - moment.began) * 1000, 1), round(gap.seconds * 1000, 1))
            for gap in gaps
            if gap.seconds >= _NOTICEABLE_S
        ),
    )


def _amount_ms(meter: ArrivalMeter, since: float, counts_from: float) -> float:
    arrived = meter.time_of(meter.total_at(since) + AMOUNT_BYTES)
    return round((arrived - counts_from) * 1000, 1)


def _rate_mbit(meter: ArrivalMeter, counts_from: float) -> float:
    begin, end = (counts_from + seconds for seconds in RATED_S)
    return round((meter.total_at(end) - meter.total_at(begin)) * 8e-6 / (end - begin), 2)
