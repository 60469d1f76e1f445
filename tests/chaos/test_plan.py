"""What a seed decides: the same again each time, and nothing that could not be undone."""

from __future__ import annotations

from itertools import islice

import pytest
from chaos.plan import Cause, Kind, disturbances, links, transfers

SEEDS = range(1, 60)
EXCLUSIVE = {
    Cause.CARRIER,
    Cause.ADMIN,
    Cause.SILENT,
    Cause.RESET,
    Cause.READDRESS,
    Cause.REBIND,
    Cause.FAMILY,
    Cause.NO_LINK,
}


def test_a_seed_plays_the_same_again():
    assert links(7) == links(7)
    assert disturbances(7, 60, crashes=True) == disturbances(7, 60, crashes=True)
    assert list(islice(transfers(7, 3), 50)) == list(islice(transfers(7, 3), 50))


def test_seeds_and_places_differ():
    assert len({tuple(disturbances(seed, 30, crashes=True)) for seed in SEEDS}) == len(SEEDS)
    assert next(transfers(7, 3)) != next(transfers(7, 4))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_everything_is_in_order_and_undone_by_the_end(seed: int):
    planned = disturbances(seed, 60, crashes=True)
    assert planned
    assert [each.at for each in planned] == sorted(each.at for each in planned)
    assert all(each.at + each.lasts < 60 for each in planned)


def test_no_link_is_cut_twice_at_a_time_and_nobody_is_asked_who_is_stopped():
    for seed in SEEDS:
        whole: dict[str, float] = {}
        stopped = 0.0
        for each in disturbances(seed, 60, crashes=True):
            if each.cause in EXCLUSIVE:
                for name in [each.link] if each.link else [link.name for link in links(seed)]:
                    assert whole.get(name, 0.0) <= each.at, (seed, each)
                    whole[name] = each.at + each.lasts
            if each.cause is Cause.AGENT_STOPPED:
                stopped = each.at + each.lasts
            if each.cause in (Cause.MOVE_ONE, Cause.MOVE_ALL):
                assert each.at >= stopped, (seed, each)


def test_every_cause_and_every_kind_of_session_comes_up():
    causes = {each.cause for seed in SEEDS for each in disturbances(seed, 60, crashes=True)}
    assert causes == set(Cause)
    assert {transfer.kind for transfer in islice(transfers(1, 0), 200)} == set(Kind)


def test_only_a_link_behind_a_nat_forgets_its_mappings():
    for seed in SEEDS:
        behind_nat = {link.name for link in links(seed) if link.nat}
        assert {each.link for each in disturbances(seed, 60, crashes=True) if each.cause is Cause.REBIND} <= behind_nat


def test_only_a_link_of_both_ip_versions_loses_one():
    for seed in SEEDS:
        both = {link.name for link in links(seed) if link.ipv4 and link.ipv6}
        assert {each.link for each in disturbances(seed, 60, crashes=True) if each.cause is Cause.FAMILY} <= both


def test_the_relay_is_not_killed():
    assert not any(each.cause is Cause.PROXY_KILLED for seed in SEEDS for each in disturbances(seed, 60, crashes=False))
