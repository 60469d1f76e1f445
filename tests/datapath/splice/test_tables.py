"""The tables in the kernel, as the daemon changes them."""

from __future__ import annotations

from tests.datapath.splice.packet_bench import MOBILE, Rig

from msocks.datapath.splice.entries import key_of


def test_flows_of_a_session_that_is_over_go_but_for_those_that_are_another_ones_by_now(bare_rig: Rig):
    tables = bare_rig.tables
    session = bare_rig.splice(4, 6)
    assert tables.flow_count() == 2
    tables.forget_flows(bare_rig.slot)
    assert tables.flow_count() == 0

    bare_rig.splice(4, 6)
    later = tables.take_slot()
    assert later is not None
    taken_up = key_of(session.legs[MOBILE])
    try:
        tables.put_flows([(taken_up, MOBILE)], later)
        tables.forget_flows(bare_rig.slot)
        assert tables.flow_count() == 1
    finally:
        tables.delete_flow(taken_up)
        tables.free_slot(later)
    assert tables.flow_count() == 0
