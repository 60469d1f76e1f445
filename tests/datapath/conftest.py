from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Generator
from typing import Any

import pytest
from tests.datapath.bench import Bench, Owner
from tests.datapath.network_counts import unequal
from tests.datapath.networks import FAMILY_NETWORKS, NETWORKS, MakeNetwork

from msocks.transport.reactor import Reactor

_PROPERTY = "network of a datapath"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "every_family: runs on the networks of FAMILY_NETWORKS too")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "bench" in metafunc.fixturenames:
        networks = dict(NETWORKS)
        if metafunc.definition.get_closest_marker("every_family"):
            networks.update(FAMILY_NETWORKS)
        metafunc.parametrize("bench", list(networks), indirect=True)


@pytest.fixture
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """A session whose server is connected, and whose first leg waits to be attached, on each network."""
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    reactor = Reactor(asyncio.get_running_loop())
    make: MakeNetwork = {**NETWORKS, **FAMILY_NETWORKS}[request.param]
    with make(reactor) as network:
        waiting = network.mobile_leg()
        server, server_leg = network.server_leg(waiting[1])
        owner = Owner()
        conduit = network.datapath.open(server_leg, owner, resumable=True)
        made = Bench(network, conduit, owner, server, waiting)
        yield made
        conduit.close(reset=True)
        for sock in (server, *(made.waiting or ()), *made.sockets):
            sock.close()
    reactor.close()
    assert not faults, "a callback raised what nobody caught"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if isinstance(item, pytest.Function) and hasattr(item, "callspec") and "bench" in item.callspec.params:
        report.user_properties.append((_PROPERTY, item.callspec.params["bench"]))
    return report


def _passed(config: pytest.Config) -> Counter[str]:
    """How many tests have passed on each network; those on which none was to run are left out."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    counts: Counter[str] = Counter()
    if reporter is not None:
        for outcome in ("passed", "failed", "error"):
            for report in reporter.stats.get(outcome, ()):
                for key, network in getattr(report, "user_properties", ()):  # a module that did not load has none
                    if key == _PROPERTY:
                        counts[network] += outcome == "passed" and report.when == "call"
    return counts


def pytest_sessionfinish(session: pytest.Session) -> None:
    if unequal(_passed(session.config), NETWORKS) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts = _passed(config)
    if not counts:
        return
    terminalreporter.section("datapaths")
    for network, count in counts.items():
        terminalreporter.write_line(f"{count:4} passed on {network}")
    if complaint := unequal(counts, NETWORKS):
        terminalreporter.write_line(complaint, red=True)
