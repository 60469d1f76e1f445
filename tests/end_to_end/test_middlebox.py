"""A link whose middlebox ACKs for the far end: what dies with its buffers is sent again on another link."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from tests.end_to_end.conftest import Field
from tests.end_to_end.test_moves import MB

from msocks_lab import CutMode, LinkConfig

SATELLITE = LinkConfig("sat", rtt_ms=60, rate_mbit=20, pep=True)
OTHER = LinkConfig("lte", rtt_ms=30, rate_mbit=20)


@pytest.fixture
def behind_a_middlebox(make_field: Callable[..., Field]) -> Field:
    """A proxy, and an agent that prefers the satellite and has found out what is on it."""
    field = make_field(SATELLITE, OTHER)
    field.start_proxy()
    field.start_agent("sat", "lte")

    def recognised() -> bool:
        links = json.loads(field.msocks("links", "--json").stdout)["links"]
        return [link["middlebox"] for link in links] == [True, False]

    field.wait_until(recognised)
    return field


@pytest.mark.parametrize("how", ["vanishes", "resets", "falls silent before"])
def test_a_middlebox_that_dies_with_full_buffers_costs_no_byte(behind_a_middlebox: Field, how: str) -> None:
    field = behind_a_middlebox
    satellite = field.lab.link("sat")
    transfer = field.transfer("--download", str(5 * MB), "--upload", str(5 * MB))
    transfer.wait_for(MB)
    if how == "falls silent before":
        began = satellite.cut(CutMode.SILENT).done
        held = satellite.pep()
        field.wait_until(lambda: field.flows()[0]["link"] == "lte", timeout=5)
        assert time.monotonic() - began < 2.5, "its ACKs were taken for signs of life"
        satellite.lose_pep()
    else:
        held = satellite.pep()
        satellite.lose_pep(reset=how == "resets")
        satellite.cut(CutMode.CARRIER)
    assert held.held_up > 100_000, "nothing was in it"
    result = transfer.result()
    assert result["error"] == "", result
    assert field.accepted_connections() == 1
    (flow,) = field.flows()
    reason = "middlebox" if field.datapath == "splice" else "chosen-by-operator"
    assert (flow["datapath"], flow["datapath_reason"]) == ("relay", reason)
