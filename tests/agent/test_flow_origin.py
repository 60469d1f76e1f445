"""What `msocks run` asks for its flows becomes what the policy respects."""

from __future__ import annotations

import socket
from typing import Any, cast

import pytest

from msocks.agent.flow_origin import facts_of, hand_of
from msocks.agent.local_port import ProgramRequest
from msocks.errors import ConfigurationError
from msocks.policy.model import NO_HAND, FlowFacts, Hand, OnLoss
from msocks.policy.terms import parse_term
from msocks.values.endpoint import Endpoint
from msocks.values.origin import Origin, Wish


def facts(destination: str, origin: Origin | None = None) -> FlowFacts:
    with socket.socket() as sock:
        return facts_of(ProgramRequest(sock, cast(Any, None), Endpoint.parse(destination), origin))


def test_names_are_compared_in_lower_case_and_mapped_addresses_as_what_they_are():
    assert facts("WWW.Example:443") == FlowFacts("www.example", 443)
    assert facts("[::ffff:192.0.2.1]:80").host == Endpoint.parse("192.0.2.1:80").host


def test_an_origin_that_is_known_is_taken():
    origin = Origin(process="ssh", pid=5, user="alice", uid=1000, tag="work")
    assert facts("a.example:22", origin) == FlowFacts("a.example", 22, "ssh", "alice", 1000, "work")


def test_a_wish_is_a_pin_a_preference_and_what_becomes_of_a_loss():
    assert hand_of(None) is NO_HAND
    wish = Wish(link="wwan0", prefer=("kind:wifi", "eth*"), on_loss="reset")
    assert hand_of(wish) == Hand("wwan0", None, (parse_term("kind:wifi"), parse_term("eth*")), OnLoss.RESET)


@pytest.mark.parametrize("wish", [Wish(on_loss="explode"), Wish(prefer=("lowest:price",)), Wish(prefer=("a b",))])
def test_a_wish_that_makes_no_sense_is_refused(wish: Wish):
    with pytest.raises(ConfigurationError):
        hand_of(wish)
