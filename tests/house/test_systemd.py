"""The unit files are valid, and harden what they run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from msocks.agent.settings import AgentLimits

UNITS = Path(__file__).parents[2] / "systemd"
INSTALLED = "/usr/local/bin/msocks"
MSOCKS = Path(sys.prefix) / "bin" / "msocks"

# Of 10; what is left is mostly that both have to reach the network; 0.6 of the proxy's are capabilities and bpf(2).
HIGHEST_EXPOSURE = {"msocks-proxy.service": 1.7, "msocks-agent.service": 1.2, "msocks-transparent.service": 2.3}
SPLICE_CAPABILITIES = {"CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_NET_RAW"}


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def installed(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The unit as it is on a machine where the program exists."""
    unit: Path = UNITS / request.param
    text = unit.read_text()
    assert text.count(INSTALLED) == 1
    copy = tmp_path / unit.name
    copy.write_text(text.replace(INSTALLED, str(MSOCKS)))
    return copy


@pytest.mark.parametrize("installed", HIGHEST_EXPOSURE, indirect=True)
def test_system_unit_is_valid(installed: Path):
    result = analyze("verify", "--man=no", "--recursive-errors=no", str(installed))
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("installed", ["user/msocks-agent.service"], indirect=True)
def test_user_unit_is_valid(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    result = analyze("--user", "verify", "--man=no", "--recursive-errors=no", str(installed))
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("unit", HIGHEST_EXPOSURE)
def test_system_unit_exposes_little(unit: str):
    result = analyze("security", "--offline=true", str(UNITS / unit))
    score = re.search(rf"Overall exposure level for {re.escape(unit)}: ([\d.]+)", result.stdout)
    assert score, result.stdout + result.stderr
    assert float(score[1]) <= HIGHEST_EXPOSURE[unit]


@pytest.mark.parametrize("setting", ["AmbientCapabilities", "CapabilityBoundingSet"])
def test_proxy_unit_grants_what_the_splice_needs_and_nothing_else(setting: str):
    lines = re.findall(rf"^{setting}=(.*)$", (UNITS / "msocks-proxy.service").read_text(), re.MULTILINE)
    assert set(" ".join(lines).split()) == SPLICE_CAPABILITIES


@pytest.mark.parametrize("unit", [*HIGHEST_EXPOSURE, "user/msocks-agent.service"])
def test_unit_runs_a_verb_with_options_that_exist(unit: str):
    command = re.search(rf"^ExecStart={INSTALLED} (\w+) (.*)$", (UNITS / unit).read_text(), re.MULTILINE)
    assert command
    verb, arguments = command.groups()
    usage = subprocess.run([MSOCKS, verb, "--help"], capture_output=True, text=True, timeout=30, check=True)
    options = re.findall(r"--[a-z-]+", arguments)
    assert options
    assert not [option for option in options if option not in usage.stdout]


@pytest.mark.parametrize("unit", ["msocks-agent.service", "user/msocks-agent.service"])
def test_agent_unit_stores_the_sockets_of_as_many_flows_as_there_may_be(unit: str):
    text = (UNITS / unit).read_text()
    most = re.search(r"^FileDescriptorStoreMax=(\d+)$", text, re.MULTILINE)
    assert most
    assert int(most[1]) == 4 * AgentLimits().flows
    assert f"\nEnvironment=FDSTORE={most[1]}\n" in text  # systemd before 254 does not say that there is a store
    assert "\nRestartKillSignal=SIGUSR2\n" in text
    assert "\nRestart=on-failure\n" in text  # which SIGKILL is
