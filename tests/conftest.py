"""What holds for every test: a test that did not run is a test that failed."""

from __future__ import annotations

import signal
from collections.abc import Generator
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says something of the machine, nothing of the code.
_ANY_MACHINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples each time: what `make soak` finds by chance becomes a test of its own.
settings.register_profile("project", _ANY_MACHINE, max_examples=50, derandomize=True)
settings.register_profile("soak", _ANY_MACHINE, max_examples=500)
settings.load_profile("project")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="more and longer, where a test knows how")


def pytest_configure(config: pytest.Config) -> None:
    # A shell has what it runs in the background ignore SIGINT, and so would all programs that are started here.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "long: part of `make soak` alone")
    if config.getoption("--soak"):
        settings.load_profile("soak")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is long is not chosen without --soak: not skipped."""
    if not config.getoption("--soak"):
        long = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether the tests may take their time (`make soak`)."""
    return bool(request.config.getoption("--soak"))


Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def _without_excuse(report: Report) -> Report:
    """Turn a skip, an expected failure and an unexpected pass into a failure that gives its reason."""
    excuse = getattr(report, "wasxfail", None)
    if excuse is not None:
        del report.wasxfail
        reason = f"marked xfail: {excuse or 'no reason given'}"
    elif report.skipped:
        # pytest describes a skip as (path, line, reason).
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    else:
        return report
    report.outcome = "failed"
    report.longrepr = f"{reason}\nHere no test may be skipped or expected to fail."
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _without_excuse((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _without_excuse((yield))
