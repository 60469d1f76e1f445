"""Descriptions of labs and links, in Python and on the command line."""

from __future__ import annotations

import json

import pytest

from msocks_lab import STANDARD_LAB, ConfigError, Direction, LabConfig, LinkConfig, Shape
from msocks_lab.config import parse_changes, parse_link


def test_rtt_is_halved_over_the_directions():
    link = LinkConfig("wifi", rtt_ms=5, rate_mbit=50, queue_ms=20)
    assert link.shape(Direction.UP) == link.shape(Direction.DOWN) == Shape(delay_ms=2.5, rate_mbit=50, queue_ms=20)


def test_one_direction_may_differ():
    link = LinkConfig("wifi", rtt_ms=5, up=Shape(delay_ms=100))
    assert link.shape(Direction.UP).delay_ms == 100
    assert link.shape(Direction.DOWN).delay_ms == 2.5


def test_a_queue_in_ms_is_bytes_at_the_rate():
    assert Shape(rate_mbit=50, queue_ms=100).queue_limit == 625_000
    assert Shape(rate_mbit=50, queue_bytes=3000).queue_limit == 3000
    assert Shape().queue_limit == float("inf")


def test_a_lab_survives_json():
    config = LabConfig([*STANDARD_LAB.links, LinkConfig("x", up=Shape(loss_percent=3), nat=True)], seed=9)
    assert LabConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wifi", LinkConfig("wifi")),
        ("wifi:rtt=5,rate=50,queue=20", LinkConfig("wifi", rtt_ms=5, rate_mbit=50, queue_ms=20)),
        ("lte:nat,nat_udp_idle_s=3,v4only", LinkConfig("lte", nat=True, nat_udp_idle_s=3, ipv6=False)),
        ("x:v6only,mtu=1400,detached", LinkConfig("x", ipv4=False, mtu=1400, attached=False)),
        ("x:fat", LinkConfig("x", fat=True)),
        ("x:rtt=10,up.loss=2", LinkConfig("x", rtt_ms=10, up=Shape(delay_ms=5, loss_percent=2))),
        ("x:rtt=10,down.delay=1", LinkConfig("x", rtt_ms=10, down=Shape(delay_ms=1))),
    ],
)
def test_links_are_read(text: str, expected: LinkConfig):
    assert parse_link(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("Wifi", "cannot name a link"),
        ("mobile", "cannot name a link"),
        ("averyverylongname", "cannot name a link"),
        ("wifi:rate", "'rate' in link 'wifi' is not understood"),
        ("wifi:speed=3", "has no 'speed'"),
        ("wifi:rate=fast", "rate_mbit=fast is not a number"),
        ("wifi:nat=1", "'nat' takes no value"),
        ("wifi:delay=3", "has no 'delay'"),
        ("wifi:up.mtu=3", "no property of a link"),
        ("wifi:loss=101", "loss_percent is 101"),
        ("wifi:rtt=-1", "delay_ms is -0.5"),
        ("wifi:mtu=1000", "MTU of 1000"),
        ("wifi:fat,rate=5", "is fat"),
        ("wifi:v4only,v6only", "neither IPv4 nor IPv6"),
        ("wifi:v6only,nat", "NAT but no IPv4"),
        ("wifi:nat,nat_udp_idle_s=0", "time-out below"),
    ],
)
def test_what_is_wrong_with_a_link_is_said(text: str, complaint: str):
    with pytest.raises(ConfigError, match=complaint) as caught:
        parse_link(text)
    assert caught.value.remedy


def test_changes_are_read():
    assert parse_changes(["rtt=10", "up.rate=none", "down.loss=5", "up.delay=3"]) == {
        "both": {"delay_ms": 5.0},
        "up": {"rate_mbit": None, "delay_ms": 3.0},
        "down": {"loss_percent": 5.0},
    }


@pytest.mark.parametrize("item", ["rate", "speed=3", "left.rate=3", "up.rtt=3", "rate=x"])
def test_wrong_changes_are_refused(item: str):
    with pytest.raises(ConfigError):
        parse_changes([item])


def test_a_lab_refuses_two_links_of_one_name_and_too_many():
    with pytest.raises(ConfigError, match="same name"):
        LabConfig([LinkConfig("a"), LinkConfig("a")])
    with pytest.raises(ConfigError, match="too many"):
        LabConfig([LinkConfig(f"l{number}") for number in range(16)])
