"""SYN, FIN and RST in a session that is established."""

from __future__ import annotations

import pytest
from tests.datapath.splice.packet_bench import FAMILIES, MOBILE, SECOND_MOBILE, Rig, Told
from tests.datapath.splice.packet_model import check

from msocks.datapath.splice.events import EventType
from msocks.datapath.splice.layout import NO_FIN, SERVER, LegState, SessionFlag, SessionState
from msocks.datapath.splice.segments import ACK, FIN, PSH, RST, SYN

LEGS = [MOBILE, SERVER]
RESETS = [RST, RST | ACK]


def place(leg: int) -> tuple[int, int]:
    """The end of what the peer has sent, and what it has acknowledged."""
    return (5000, 8000) if leg == MOBILE else (9000, 4000)


def resets(rig: Rig, leg: int, offset: int, flags: int, acks: int | None = None):
    return check(rig, leg, rig.segment(leg, offset, place(leg)[1] if acks is None else acks, flags, window=0))


# -- RST ---------------------------------------------------------------------------------------------------------------

EXACT = {MOBILE: [4000, 5000, 4800], SERVER: [8000, 9000, 8900]}  # acknowledged, sent, arrived on this leg
INEXACT = {
    MOBILE: [3999, 4001, 4500, 4999, 5001, 60000],
    SERVER: [7999, 8001, 8500, 8999, 9001, 60000],
}


@pytest.fixture
def distinct(rig: Rig) -> Rig:
    """The ends of what has arrived on the legs are not those of the streams."""
    rig.session.legs[MOBILE].arrived, rig.session.legs[SERVER].arrived = 4800, 8900
    return rig


@pytest.mark.parametrize("flags", RESETS)
@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("leg", LEGS)
def test_an_exact_reset_ends_a_session_that_cannot_be_resumed_and_reaches_the_other_end(
    distinct: Rig, leg: int, index: int, flags: int
):
    rig = distinct
    result = resets(rig, leg, EXACT[leg][index], flags)
    assert result.seen.segment.flags == flags
    kind = EventType.LEG_RESET if leg == MOBILE else EventType.SERVER_RESET
    assert result.told == [Told(kind, leg, 70 + leg)]
    assert rig.session.state == SessionState.RESETTING
    for each in LEGS:
        # Whoever does not believe the reset is told again, where it stands.
        spoke = rig.segment(each, *place(each))
        result = check(rig, each, spoke)
        assert result.drops == {"stale_flow": 1}
        assert result.told == [Told(EventType.SPOKE, each, spoke.acknowledgment)]


@pytest.mark.parametrize("flags", RESETS)
@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("leg", LEGS)
def test_an_inexact_reset_ends_nothing_here_and_is_the_receivers_to_judge(
    distinct: Rig, leg: int, index: int, flags: int
):
    result = resets(distinct, leg, INEXACT[leg][index], flags)
    assert result.seen.segment.flags == flags
    assert distinct.session.state == SessionState.OPEN
    assert result.told == []


@pytest.mark.parametrize("flags", RESETS)
@pytest.mark.parametrize("index", range(3))
def test_an_exact_reset_of_a_mobile_that_can_resume_detaches_its_leg(distinct: Rig, index: int, flags: int):
    rig = distinct
    rig.session.flags = SessionFlag.RESUMABLE
    result = resets(rig, MOBILE, EXACT[MOBILE][index], flags)
    assert result.drops == {"reset_detaches": 1}
    assert result.told == [Told(EventType.LEG_RESET, MOBILE, 70 + MOBILE)]
    assert rig.session.state == SessionState.OPEN
    assert rig.session.legs[MOBILE].state == LegState.STOPPED
    assert rig.session.flags & SessionFlag.STOPPED
    assert check(rig, MOBILE, rig.segment(MOBILE, 5000, 8000)).drops == {"stale_leg": 1}
    assert check(rig, SERVER, rig.segment(SERVER, 9000, 4000)).drops == {"stopped": 1}


@pytest.mark.parametrize("flags", RESETS)
@pytest.mark.parametrize("index", range(6))
def test_an_inexact_reset_of_a_mobile_that_can_resume_goes_nowhere(distinct: Rig, index: int, flags: int):
    distinct.session.flags = SessionFlag.RESUMABLE
    result = resets(distinct, MOBILE, INEXACT[MOBILE][index], flags)
    assert (result.drops, result.told) == ({"inexact_reset": 1}, [])


@pytest.mark.parametrize("flags", RESETS)
def test_a_reset_of_the_server_is_not_passed_on_where_it_would_say_that_the_leg_is_gone(rig: Rig, flags: int):
    rig.session.flags = SessionFlag.RESUMABLE
    result = resets(rig, SERVER, 9000, flags)
    assert result.drops == {"reset_detaches": 1}
    assert result.told == [Told(EventType.SERVER_RESET, SERVER, 70 + SERVER)]
    assert rig.session.state == SessionState.RESET


@pytest.mark.parametrize("flags", RESETS)
@pytest.mark.parametrize("index", range(6))
def test_a_server_whose_reset_is_inexact_is_asked_and_not_the_mobile(distinct: Rig, index: int, flags: int):
    rig = distinct
    rig.session.flags = SessionFlag.RESUMABLE
    result = resets(rig, SERVER, INEXACT[SERVER][index], flags)
    assert (result.drops, result.told) == ({"inexact_reset": 1}, [Told(EventType.INEXACT_RESET, SERVER, 0)])
    assert rig.session.state == SessionState.OPEN
    assert resets(rig, SERVER, INEXACT[SERVER][index], flags).told == []  # not again at once


@pytest.mark.parametrize("flags", RESETS)
@pytest.mark.parametrize("resumable", [0, SessionFlag.RESUMABLE])
@pytest.mark.parametrize("leg", LEGS)
def test_a_reset_that_does_not_get_through_ends_nothing(rig: Rig, leg: int, resumable: int, flags: int):
    rig.session.flags = resumable
    out = rig.session.legs[SERVER if leg == MOBILE else MOBILE]
    out.path_mtu = 576
    reset = rig.segment(leg, *place(leg), flags, payload=bytes(1000))
    result = check(rig, leg, reset)
    assert result.drops == {"too_big": 1}
    assert rig.session.state == SessionState.OPEN
    assert not rig.session.flags & SessionFlag.STOPPED
    assert EventType.LEG_RESET not in {told.type for told in result.told}
    out.path_mtu, out.path.known = 0, 0
    assert check(rig, leg, reset).drops == {"no_path": 1}
    assert rig.session.state == SessionState.OPEN


def test_a_server_resets_while_no_leg_carries(rig: Rig):
    rig.session.flags = SessionFlag.RESUMABLE | SessionFlag.STOPPED
    assert resets(rig, SERVER, 8500, RST).told == [Told(EventType.INEXACT_RESET, SERVER, 0)]
    result = resets(rig, SERVER, 9000, RST)
    assert (result.drops, result.told) == ({"stopped": 1}, [Told(EventType.SERVER_RESET, SERVER, 70)])
    assert rig.session.state == SessionState.RESET


@pytest.mark.parametrize("leg", LEGS)
def test_a_reset_moves_no_stream(rig: Rig, leg: int):
    before = rig.snapshot()
    rig.run(rig.frame(leg, rig.segment(leg, place(leg)[0] + 10, place(leg)[1], RST, payload=b"why", window=9)))
    for name in ("up", "down"):
        assert bytes(getattr(rig.session, name)) == bytes(getattr(before, name))


@pytest.mark.parametrize("acks", [-(1 << 31), 0, (1 << 31) - 1])
@pytest.mark.parametrize("leg", LEGS)
def test_a_reset_counts_whatever_it_acknowledges(rig: Rig, leg: int, acks: int):
    """RFC 9293 section 3.10.7.4: in a synchronized state the RST is looked at before the ACK."""
    before = rig.snapshot()
    assert resets(rig, leg, place(leg)[0], RST | ACK, place(leg)[1] + acks).seen.segment.flags == RST | ACK
    assert rig.session.state == SessionState.RESETTING
    for name in ("up", "down"):
        assert bytes(getattr(rig.session, name)) == bytes(getattr(before, name))


def test_a_reset_without_ack_has_no_ack_behind_the_splice_either(rig: Rig):
    seen = resets(rig, MOBILE, 4500, RST).seen
    assert (seen.segment.acknowledgment, seen.segment.window) == (0, 0)


# -- SYN ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [SYN, SYN | ACK, SYN | FIN | ACK, SYN | PSH | ACK])
@pytest.mark.parametrize("leg", LEGS)
def test_a_syn_reaches_the_other_end_which_answers_it(rig: Rig, leg: int, flags: int):
    """RFC 5961 section 4.2: a challenge ACK, whose numbers show who is right."""
    session = rig.session
    at, acks = place(leg)
    numbers = [(stream.sent, stream.edge, stream.fin) for stream in (session.up, session.down)]
    seen = check(rig, leg, rig.segment(leg, at, acks, flags, window=1234)).seen
    assert seen.segment.flags == flags
    assert seen.segment.window == (1234 if flags & ACK else 0)  # the window of a SYN has no scale
    assert [(stream.sent, stream.edge, stream.fin) for stream in (session.up, session.down)] == numbers


# -- FIN ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mobile", "server"), FAMILIES)
@pytest.mark.parametrize("first", LEGS)
def test_both_ends_finish(bare_rig: Rig, mobile: int, server: int, first: int):
    rig = bare_rig
    session = rig.splice(mobile, server)
    second = SERVER if first == MOBILE else MOBILE
    ends = {MOBILE: 5000, SERVER: 9000}
    check(rig, first, rig.segment(first, ends[first], ends[second], FIN | ACK))
    stream = session.up if first == MOBILE else session.down
    assert (stream.fin, stream.sent) == (ends[first], ends[first] + 1)
    check(rig, second, rig.segment(second, ends[second], ends[first] + 1))
    assert (session.finished, session.state) == (0, SessionState.OPEN)
    check(rig, second, rig.segment(second, ends[second], ends[first] + 1, FIN | ACK))
    result = check(rig, first, rig.segment(first, ends[first] + 1, ends[second] + 1))
    assert result.told == [Told(EventType.FINISHED, first, 0)]
    assert (session.finished, session.state) == (1, SessionState.CLOSING)
    # What comes late still passes, and is told no more.
    for leg, other in ((first, second), (second, first)):
        assert check(rig, leg, rig.segment(leg, ends[leg], ends[other] + 1, FIN | ACK)).told == []


def test_a_fin_with_data_and_one_that_comes_again(rig: Rig):
    session = rig.session
    for _ in range(2):
        check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500, FIN | ACK, payload=bytes(100)))
        assert (session.up.fin, session.up.sent, session.legs[MOBILE].arrived) == (5100, 5101, 5101)


def test_a_fin_before_the_end_of_what_was_sent_is_none(rig: Rig):
    check(rig, MOBILE, rig.segment(MOBILE, 4500, 8500, FIN | ACK))
    assert (rig.session.up.fin, rig.session.up.sent) == (NO_FIN, 5000)


@pytest.mark.parametrize("leg", [MOBILE, SERVER], ids=["up", "down"])
def test_a_fin_that_comes_after_an_ack_from_behind_it(rig: Rig, leg: int):
    session = rig.session
    stream, end, other = (session.up, 5000, 8500) if leg == MOBILE else (session.down, 9000, 4500)
    check(rig, leg, rig.segment(leg, end + 1, other))
    check(rig, leg, rig.segment(leg, end, other, FIN | ACK))
    assert (stream.fin, stream.sent) == (end, end + 1)


def test_data_behind_a_fin_show_it_to_be_false(rig: Rig):
    session = rig.session
    check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500, FIN | ACK))
    check(rig, MOBILE, rig.segment(MOBILE, 5001, 8500))  # its end's own acknowledgments come from behind it
    assert session.up.fin == 5000
    check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500, payload=bytes(50)))
    assert (session.up.fin, session.up.sent) == (NO_FIN, 5050)


# -- after a move ------------------------------------------------------------------------------------------------------


@pytest.fixture
def moved(rig: Rig) -> Rig:
    session = rig.session
    leg = rig.leg(SECOND_MOBILE, 6)
    session.active, leg.begins_in, leg.arrived, leg.begins_out = SECOND_MOBILE, 4000, 4000, 8000
    leg.in_base, leg.out_base = 0xFFFFF000, 0xFFFFE000
    return rig


def test_the_streams_go_on_by_a_leg_of_another_family_and_other_numbers(moved: Rig):
    seen = check(moved, SECOND_MOBILE, moved.segment(SECOND_MOBILE, 4000, 8000, payload=bytes(1000))).seen
    assert seen.segment.sequence == moved.session.legs[SERVER].out_base + 4000
    seen = check(moved, SERVER, moved.segment(SERVER, 8000, 5000, payload=bytes(1000))).seen
    assert seen.segment.sequence == (0xFFFFE000 + 8000) % 2**32
    assert seen.destination == ("2001:db8:9::10", 50124)


def test_the_reply_that_the_mobile_misses_is_asked_for_once_in_a_while(moved: Rig):
    segment = moved.segment(SECOND_MOBILE, 4000, 7990)
    assert check(moved, SECOND_MOBILE, segment).told == [Told(EventType.REPLY_MISSING, SECOND_MOBILE, 72)]
    assert check(moved, SECOND_MOBILE, segment).told == []
    moved.session.complained_ns = 0
    moved.session.down.packets = 0  # nothing has come behind the reply that would show it missing
    assert check(moved, SECOND_MOBILE, segment).told == []
