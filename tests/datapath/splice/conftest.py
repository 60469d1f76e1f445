from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from tests.datapath.splice import packet_bench
from tests.datapath.splice.packet_bench import Rig
from tests.datapath.splice.two_hosts import FAMILIES, TwoHosts, two_hosts


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    with two_hosts() as hosts:
        yield hosts


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> socket.AddressFamily:
    return socket.AddressFamily(request.param)


@pytest.fixture(scope="module")
def bare_rig() -> Iterator[Rig]:
    with packet_bench.rig() as made:
        yield made


@pytest.fixture
def rig(bare_rig: Rig) -> Rig:
    """With an open session between IPv4 legs."""
    bare_rig.splice()
    return bare_rig
