"""Silence and false alarms over thousands of minutes of virtual time."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msocks.session.path_health import IDLE_METERED_S, MARGIN_S, PathHealth
from msocks.session.path_state import Means, PathState, Tariff


def always(_now: float) -> bool:
    return True


def nothing(_now: float) -> float:
    return 0.0


def until(cut: float) -> Callable[[float], bool]:
    return lambda now: now < cut


def except_between(cut: float, mended: float) -> Callable[[float], bool]:
    return lambda now: not cut <= now <= mended


@dataclass
class Road:
    """A path with a proxy at its end, and the clock that goes with it.

    `jitter` and `loss` hold for each direction; `queue` is what waiting adds to the round-trip time of a probe that
    is sent at a moment. Traffic runs every `every` seconds while it `flows`; `heard` says whether something
    comes back for it.
    """

    rtt: float = 0.005
    jitter: float = 0.0
    loss: float = 0.0
    lives: Callable[[float], bool] = always
    queue: Callable[[float], float] = nothing
    udp_passes: Callable[[float], bool] = always
    has_control: bool = True
    every: float | None = None
    flows: Callable[[float], bool] = always
    heard: bool = True
    tariff: Tariff = Tariff.FREE
    seed: int = 1
    now: float = 0.0
    sent: list[tuple[float, Means]] = field(default_factory=list)
    changes: list[tuple[float, PathState]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.health = PathHealth(self.now, self.tariff)
        self._random = random.Random(self.seed)
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        if self.every is not None:
            self.at(self.now + self.every, self._traffic)

    def is_in(self, state: PathState) -> bool:
        return self.health.state is state

    @property
    def silences(self) -> list[float]:
        return [at for at, state in self.changes if state is PathState.SILENT]

    def at(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), action))

    def run(self, until: float) -> None:
        while True:
            due = self.health.next_event(self.now)
            event = self._events[0][0] if self._events else math.inf
            then = max(self.now, min(due, event))
            if then >= until:
                self.now = until
                return
            self.now = then
            if event <= due:
                heapq.heappop(self._events)[2]()
            else:
                self._ask(self.health.advance(self.now))
            self._note()

    def _note(self) -> None:
        if not self.changes or self.changes[-1][1] is not self.health.state:
            self.changes.append((self.now, self.health.state))

    def _ask(self, asked: Means) -> None:
        sent = Means.NOTHING
        for means in (Means.UDP, Means.CONTROL):
            if means not in asked or (means is Means.CONTROL and not self.has_control):
                continue
            sent |= means
            number = next(self._numbers)
            self.sent.append((self.now, means))
            self.health.on_probe_sent(self.now, number, means)
            passes = means is Means.CONTROL or self.udp_passes(self.now)
            if passes and self.lives(self.now) and self._arrives() and self._arrives():
                delay = self.rtt + self.queue(self.now) + sum(self._random.uniform(0, self.jitter) for _ in "ud")
                self.at(self.now + delay, partial(self._answer, number))
        if asked and not sent:
            self.health.on_mute(self.now)

    def _arrives(self) -> bool:
        return self._random.random() >= self.loss

    def _answer(self, number: int) -> None:
        if self.lives(self.now):
            self.health.on_answer(self.now, number)

    def _traffic(self) -> None:
        assert self.every is not None
        if self.flows(self.now):
            self.health.on_traffic(self.now)
            if self.heard and self.lives(self.now):
                self.health.on_heard(self.now)
        self.at(self.now + self.every, self._traffic)


TYPING = 0.2
DOWNLOAD = 0.003


@pytest.mark.parametrize(
    ("rtt", "half", "worst"), [(0.005, 0.22, 0.28), (0.05, 0.30, 0.40)], ids=["rtt=5ms", "rtt=50ms"]
)
@pytest.mark.parametrize(("every", "heard"), [(DOWNLOAD, True), (TYPING, True), (0.05, False)])
def test_silence_is_found_within_the_time_of_the_goal(rtt: float, half: float, worst: float, every: float, heard: bool):
    """With 2 % loss each way and 2 x 5 ms of jitter; `heard` False is an upload whose ACKs nobody looks at."""
    took = []
    for seed in range(25):
        cut = 10 + 0.0437 * seed
        road = Road(rtt, 0.005, 0.02, lives=until(cut), every=every, heard=heard, seed=seed)
        road.run(cut + 5)
        assert len(road.silences) == 1, f"seed {seed}: a false alarm"
        took.append(road.silences[0] - cut)
    assert min(took) > 0
    assert median(took) <= half
    assert max(took) <= worst


@pytest.mark.parametrize("rtt", [0.005, 0.05])
def test_no_false_alarm_in_hours_of_loss_and_jitter(rtt: float):
    """Of a busy path of which nothing but the answers to probes is heard."""
    road = Road(rtt, 0.01, 0.02, every=0.05, heard=False)
    road.run(40 * 60)
    assert not road.silences


@pytest.mark.parametrize("loss", [0.0, 0.02])
def test_no_false_alarm_in_days_of_idleness(loss: float):
    """5,000 minutes, and few probes in them."""
    road = Road(0.05, 0.02, loss)
    road.run(5000 * 60)
    assert not road.silences
    assert len(road.sent) < 5000 * 60 / 15 * 1.2 + 100


@pytest.mark.parametrize("full", [0.1, 0.5])
def test_no_alarm_when_a_queue_fills_with_somebody_elses_upload(full: float):
    """Slow start sends at twice the rate of the bottleneck: the queue grows as fast as time goes."""
    road = Road(0.005, 0.002, every=0.05, heard=False, queue=lambda now: min(full, max(0.0, now % 20 - 5)))
    road.run(10 * 60)
    assert not road.silences


def test_no_alarm_when_a_queue_is_full_at_once_as_long_as_acks_come_back():
    """Our own upload: nothing but ACKs is heard, and the probes are behind the data."""
    road = Road(0.005, 0.002, every=0.01, queue=lambda now: 0.5 if now % 20 > 5 else 0.0)
    road.run(10 * 60)
    assert not road.silences


def test_silence_behind_a_full_queue_is_found_too():
    road = Road(0.005, 0.002, every=0.01, queue=lambda _now: 0.5, lives=until(60))
    road.run(70)
    assert 60 < road.silences[0] < 61.5


@pytest.mark.parametrize("full", [0.1, 0.5])
def test_silence_of_a_download_is_found_as_soon_although_it_fills_a_queue(full: float):
    for seed in range(10):
        cut = 30 + 0.0437 * seed
        road = Road(0.005, 0.002, every=DOWNLOAD, lives=until(cut), seed=seed)
        road.queue = lambda now: full if now > 1 else 0.0
        road.run(cut + 5)
        assert len(road.silences) == 1
        assert 0 < road.silences[0] - cut < 0.28


def test_behind_somebody_elses_queue_a_download_that_pauses_raises_no_alarm():
    """A film that comes in portions, and another host's download from the first minute on: answers still come."""
    road = Road(0.005, 0.002, every=DOWNLOAD, flows=lambda now: now % 10 < 6)
    road.queue = lambda now: 0.4 if now > 64 else 0.0
    road.run(600)
    assert not road.silences


def test_a_path_that_is_late_once_is_given_more_time_and_less_again_later():
    """Everything is held up for 0.4 s and then comes: a false alarm that the answers themselves reveal."""
    road = Road(
        every=0.05, heard=False, queue=lambda now: max(0.0, 0.4 - now % 20) if now % 20 < 0.4 and now > 1 else 0
    )
    road.run(400)
    assert 1 <= len(road.silences) <= 4
    assert road.silences[-1] < 120, "it learns"
    road.queue = nothing
    road.run(45 * 60)
    road.lives = lambda now: now < 45 * 60
    road.run(46 * 60)
    assert road.silences[-1] - 45 * 60 < 0.3, "and forgets"


@pytest.mark.parametrize("rtt", [0.005, 0.05])
def test_a_path_whose_round_trips_grow_by_half_a_second_now_and_then_raises_one_alarm(rtt: float):
    for seed in range(5):
        road = Road(rtt, every=0.05, heard=False, queue=lambda now: 0.5 if now > 60 and now % 37 > 30 else 0, seed=seed)
        road.run(600)
        assert len(road.silences) == 1


def test_a_path_where_data_arrives_costs_few_probes_and_knows_its_round_trip_time():
    road = Road(0.02, 0.001, every=DOWNLOAD)
    road.run(60)
    assert len(road.sent) < 11 * 60
    assert road.health.rtt.smoothed_s == pytest.approx(0.021, abs=0.003)


def test_probes_get_fewer_the_longer_a_path_is_idle():
    road = Road()
    road.health.on_traffic(0.0)
    counts = []
    for minute in range(10):
        before = len(road.sent)
        road.run(60 * (minute + 1))
        counts.append(len(road.sent) - before)
    assert counts[0] < 60
    assert counts[-1] == 4
    assert counts == sorted(counts, reverse=True)


def test_an_idle_metered_path_costs_nothing_and_an_idle_leg_on_it_next_to_nothing():
    road = Road(tariff=Tariff.METERED)
    road.run(300)
    before = len(road.sent)
    road.run(300 + 24 * 3600)
    assert len(road.sent) == before
    assert road.is_in(PathState.ALIVE)
    road.health.on_legs(True)
    road.run(300 + 25 * 3600)
    assert 0 < len(road.sent) - before <= 3600 / IDLE_METERED_S + 1
    road.every = 0.1
    road.at(road.now, road._traffic)
    road.run(road.now + 10)
    road.lives = lambda now: now < 0
    cut = road.now
    road.run(cut + 1)
    assert road.silences
    assert road.silences[-1] - cut < 0.4


def test_a_path_that_never_answers_is_silent_soon_and_is_asked_ever_less():
    road = Road(lives=lambda _now: False)
    road.run(2)
    assert 1.0 < road.silences[0] < 1.6
    road.run(600)
    before = len(road.sent)
    road.run(660)
    assert len(road.sent) - before <= 13


def test_a_new_path_is_proven_after_one_round_trip():
    road = Road(0.05)
    road.run(0.049)
    assert road.is_in(PathState.UNPROVEN)
    road.run(0.06)
    assert road.is_in(PathState.ALIVE)
    assert road.health.rtt.smoothed_s == pytest.approx(0.05)


def test_where_nothing_can_be_sent_time_passes_all_the_same():
    road = Road(has_control=False)
    calls = 0
    now = 0.0
    while now < 60:
        now = max(now, road.health.next_event(now))
        assert Means.UDP in road.health.advance(now)
        road.health.on_mute(now)
        calls += 1
    assert calls < 60
    assert road.is_in(PathState.UNPROVEN)


def test_a_radio_that_has_to_wake_up_raises_no_alarm_and_is_no_measurement():
    """After a pause the first answer takes 0.45 s, the next ones come as ever."""
    road = Road(0.03)
    road.run(300)
    usual, start = road.health.rtt.smoothed_s, max(road.now, road.health.heard_at + 6)
    road.queue = lambda now: max(0.0, 0.42 - (now - start))
    road.at(start, lambda: road.health.on_traffic(start))
    road.run(start + 0.46)
    assert road.health.heard_at > start
    assert road.health.rtt.smoothed_s == pytest.approx(usual, abs=0.02)
    road.run(start + 10)
    assert not road.silences


class TestReturn:
    """From silence back to life."""

    @staticmethod
    def silent_road(**options: object) -> Road:
        road = Road(0.02, every=0.1, lives=until(10), **options)  # type: ignore[arg-type]
        road.run(11)
        assert road.is_in(PathState.SILENT)
        return road

    def test_takes_several_answers_and_some_time(self):
        road = self.silent_road()
        road.health.wanted = True
        road.lives = always
        road.run(20)
        back = road.changes[-1]
        assert back[1] is PathState.ALIVE
        assert 0.3 <= back[0] - 11 < 0.9

    def test_takes_one_answer_where_there_is_no_other_path(self):
        road = self.silent_road(heard=False)
        road.health.wanted = road.health.alone = True
        road.run(15)
        road.lives = always
        road.run(20)
        assert road.changes[-1][1] is PathState.ALIVE
        assert road.changes[-1][0] - 15 < 0.16

    def test_takes_longer_each_time_for_a_path_that_flaps(self):
        road = Road(0.02, every=0.1, heard=False)
        road.health.wanted = True
        held = []
        for cycle in range(6):
            start = road.now
            road.lives = except_between(start + 5, start + 6)
            road.run(start + 12)
            assert road.is_in(PathState.ALIVE), cycle
            held.append(road.changes[-1][0] - (start + 6))
        assert held == sorted(held)
        assert held[0] < 0.8
        assert 2.9 < held[-1] < 4
        road.lives = always
        road.run(road.now + 300)
        start = road.now
        road.lives = except_between(start + 5, start + 6)
        road.run(start + 12)
        assert road.changes[-1][0] - (start + 6) < 0.8, "and is forgiven when it was well for a while"

    def test_a_single_sign_of_life_is_not_enough(self):
        road = self.silent_road(heard=False)
        road.lives = lambda now: 12 <= now < 12.3
        road.run(60)
        assert road.is_in(PathState.SILENT)
        assert len(road.silences) == 1

    def test_a_burst_of_bytes_is_one_sign_of_life(self):
        road = self.silent_road(heard=False)
        for step in range(50):
            road.health.on_heard(11 + step / 1000)
        assert road.is_in(PathState.SILENT)

    def test_a_silent_path_is_asked_more_often_where_flows_wait_for_it(self):
        counts = {}
        for wanted, alone in ((True, True), (True, False), (False, False)):
            road = self.silent_road(heard=False)
            road.health.wanted, road.health.alone = wanted, alone
            before = len(road.sent)
            road.run(21)
            counts[wanted, alone] = len(road.sent) - before
        assert counts[True, True] > 80
        assert 10 < counts[True, False] < 40
        assert counts[False, False] < 20


class TestWithoutUdp:
    """Where a firewall lets TCP pass alone, pings on the control channel take the place of probes."""

    def test_is_noticed_without_an_alarm(self):
        road = Road(0.03, 0.002, every=TYPING, udp_passes=lambda _now: False)
        road.run(60)
        assert not road.silences
        assert road.health.udp_blocked
        assert road.health.rtt.smoothed_s == pytest.approx(0.032, abs=0.003)
        late = [means for at, means in road.sent if at > 30]
        assert late.count(Means.UDP) <= 2
        assert late.count(Means.CONTROL) > 20

    def test_is_noticed_on_an_idle_path(self):
        road = Road(0.03, udp_passes=lambda _now: False)
        road.run(600)
        assert not road.silences
        assert road.health.udp_blocked

    def test_is_noticed_when_it_begins_later(self):
        road = Road(0.03, every=0.05, heard=False, udp_passes=until(60))
        road.run(120)
        assert not road.silences
        assert road.health.udp_blocked

    def test_silence_is_found_all_the_same(self):
        took = []
        for seed in range(20):
            cut = 60 + seed / 33
            road = Road(
                0.005,
                udp_passes=lambda _now: False,
                lives=until(cut),
                every=0.05,
                heard=False,
                seed=seed,
            )
            road.run(cut + 3)
            took.append(road.silences[0] - cut)
        assert min(took) > 0
        assert max(took) < 0.4

    def test_ends_when_udp_passes_again(self):
        road = Road(0.03, every=0.5, udp_passes=lambda now: now > 100)
        road.run(99)
        blocked = road.health.udp_blocked
        road.run(140)
        assert (blocked, road.health.udp_blocked) == (True, False)
        assert road.sent[-1][1] is Means.UDP

    def test_a_silent_path_is_not_taken_for_one_without_udp(self):
        road = Road(0.03, every=0.05, lives=until(10))
        road.run(60)
        assert not road.health.udp_blocked


def test_answers_to_unknown_probes_and_duplicates_are_ignored():
    health = PathHealth(0.0)
    health.on_answer(0.1, 77)
    assert health.state is PathState.UNPROVEN
    health.on_probe_sent(0.2, 1, Means.UDP)
    health.on_answer(0.25, 1)
    health.on_answer(5.0, 1)
    assert health.rtt.smoothed_s == pytest.approx(0.05)


def test_what_was_heard_before_the_probes_excuses_nothing():
    """TCP_INFO tells of the past."""
    health = PathHealth(0.0)
    health.on_probe_sent(0.0, 1, Means.UDP)
    health.on_answer(0.01, 1)
    for number in range(2, 8):
        health.on_probe_sent(1 + number / 20, number, Means.UDP)
    health.on_heard(0.9)
    health.advance(2.0)
    health.advance(2.1)
    assert health.state is PathState.SILENT


@pytest.mark.parametrize("answers", [True, False])
def test_who_looks_late_asks_by_other_means_before_a_path_is_called_silent(answers: bool):
    """The proxy's program is stopped and its kernel is not; this program had no processor for a while."""
    health = PathHealth(0.0)
    health.on_probe_sent(0.0, 1, Means.UDP)
    health.on_answer(0.01, 1)
    for number in range(2, 8):
        health.on_probe_sent(1 + number / 20, number, Means.UDP)
    assert Means.CONTROL in health.advance(2.0)
    health.on_probe_sent(2.0, 8, Means.CONTROL)
    assert health.state is PathState.ALIVE
    if answers:
        health.on_heard(2.001)  # the ACK of the ping
    health.advance(2.1)
    assert health.state is (PathState.ALIVE if answers else PathState.SILENT)


def test_patience_has_bounds():
    health = PathHealth(0.0)
    health.on_probe_sent(0.0, 1, Means.UDP)
    health.on_answer(0.0001, 1)
    for number in range(2, 8):
        health.on_probe_sent(0.5 + number / 1e6, number, Means.UDP)
    states = []
    for margins in (0.9, 2, 3):
        health.advance(0.5 + margins * MARGIN_S)
        states.append(health.state)
    assert states == [PathState.ALIVE, PathState.ALIVE, PathState.SILENT]


EVENTS = st.lists(
    st.tuples(
        st.floats(0.0, 20.0),
        st.sampled_from(["advance", "answer", "heard", "past", "traffic", "legs", "wanted", "alone", "mute"]),
        st.integers(0, 30),
    ),
    max_size=120,
)


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.sampled_from(Tariff))
def test_whatever_happens_it_goes_on(events: list[tuple[float, str, int]], tariff: Tariff):
    """No order of events breaks it, and it never asks to be called for nothing again and again."""
    health = PathHealth(0.0, tariff)
    now, number = 0.0, 0
    for pause, kind, detail in events:
        end = now + pause
        for _ in range(100_000):
            due = health.next_event(now)
            if due > end:
                break
            now = max(now, due)
            asked = health.advance(now)
            for means in (Means.UDP, Means.CONTROL):
                if means in asked:
                    number += 1
                    health.on_probe_sent(now, number, means)
        else:
            pytest.fail("it is busy with itself")
        now = end
        match kind:
            case "answer":
                health.on_answer(now, number - detail)
            case "heard":
                health.on_heard(now)
                assert health.state is not PathState.UNPROVEN
            case "past":
                health.on_heard(now - detail)
            case "traffic":
                health.on_traffic(now)
            case "legs":
                health.on_legs(bool(detail % 2))
            case "wanted":
                health.wanted = bool(detail % 2)
            case "alone":
                health.alone = bool(detail % 2)
            case "mute":
                health.on_mute(now)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.001, 0.08), min_size=50, max_size=200), st.floats(0.001, 0.5))
def test_a_path_on_which_something_is_always_heard_is_never_silent(gaps: list[float], rtt: float):
    road = Road(rtt, lives=lambda _now: False)
    for gap in gaps:
        road.run(road.now + gap)
        road.health.on_heard(road.now)
        road.health.on_traffic(road.now)
        assert road.is_in(PathState.ALIVE)


@pytest.mark.parametrize("refused", [True, False])
def test_a_proxy_that_is_gone_does_not_make_its_path_silent_as_long_as_its_host_says_so(refused: bool):
    road = Road(lives=until(10), every=TYPING, heard=False)
    if refused:
        for second in range(10, 40):
            road.at(second + 0.01, lambda: road.health.on_refused(road.now))
    road.run(39)
    assert bool(road.silences) is not refused
    road.run(50)  # now the host is gone as well
    assert len(road.silences) == 1
