from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from tests.datapath.splice.two_hosts import FAMILIES, TwoHosts, two_hosts


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    with two_hosts() as hosts:
        yield hosts


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> socket.AddressFamily:
    return socket.AddressFamily(request.param)
