"""A lab with the product in it: proxy, agent, and pattern traffic whose every byte is checked by the lab."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from msocks_lab import Lab, LabConfig, LabProcess, LinkConfig
from msocks_lab.process import python_argv

MSOCKS = str(Path(sys.executable).with_name("msocks"))
PORT = 1080
SERVER_PORT = 7000
DATAPATHS = ("relay", "splice")
"""What `msocks proxy --datapath` is told: all that takes `field` or `make_field` runs on each."""
WIFI = LinkConfig("wifi", rtt_ms=5, rate_mbit=50)
LTE = LinkConfig("lte", rtt_ms=50, rate_mbit=20)


# Take programs that only `tools/install soak` brings.
SOAK_ONLY = ("test_browser.py", "test_ftp.py", "test_programs_on_the_move.py")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name in SOAK_ONLY and not config.getoption("--soak") else None


class Transfer:
    """A pattern client on the mobile host, through the agent."""

    def __init__(self, process: LabProcess, record: Path) -> None:
        self.process = process
        self.record = record

    def received(self) -> int:
        """Bytes so far, by the lab's own count (not by the product's)."""
        lines = self.process.output().splitlines()
        return int(json.loads(lines[-1])["received"]) if lines else 0

    def wait_for(self, received: int, timeout: float = 20) -> None:
        deadline = time.monotonic() + timeout
        while self.received() < received:
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{self.received()} of {received} bytes came:\n{self.process.tail()}")
            time.sleep(0.02)

    def result(self, timeout: float = 60) -> dict[str, Any]:
        """The end: every byte right, in both directions."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the transfer hangs after {self.received()} bytes:\n{self.process.tail()}")
        result: dict[str, Any] = json.loads(self.process.output().splitlines()[-1])
        return result


class Field:
    """The lab and what runs in it."""

    def __init__(self, lab: Lab, datapath: str) -> None:
        self.lab = lab
        self.datapath = datapath
        self.directory = lab.directory
        self.state = self.directory / "state"
        self.control = self.directory / "agent.sock"
        self.access = self.directory / "access"
        self._transfers = 0
        self._running: list[LabProcess] = []
        self._accepted_before = 0
        self.agent: LabProcess | None = None
        addresses = [f"{lab.proxy.ipv4}:{PORT}", f"[{lab.proxy.ipv6}]:{PORT}"]
        options = [word for address in addresses for word in ("--address", address)]
        link = lab.proxy.run([MSOCKS, "user", "add", "alice", "--state", str(self.state), *options]).stdout
        self.access.write_text(link)
        self.access.chmod(0o600)
        lab.server.popen(python_argv("msocks_lab.pattern_server", "--port", str(SERVER_PORT)))
        lab.server.wait_listening(SERVER_PORT)

    def start_proxy(self, *more: str) -> None:
        """Start it; `more` are further options."""
        listen = ["--listen", f"0.0.0.0:{PORT}", "--listen", f"[::]:{PORT}"]
        allow = ["--allow", f"{self.lab.server.ipv4}/32", "--allow", f"{self.lab.server.ipv6}/128"]
        options = ["--state", str(self.state), "--datapath", self.datapath]
        self.proxy = self._ready(
            self.lab.proxy.popen([MSOCKS, "proxy", *listen, *allow, *options, *more], stdout=subprocess.PIPE)
        )

    def kill_proxy(self) -> None:
        """`kill -9`."""
        self.proxy.kill()
        self.proxy.wait()

    def start_agent(self, *links: str, policy: str = "") -> LabProcess:
        """Start it; `policy` is the text of its tables ``[policy]``."""
        argv = [MSOCKS, "agent", "--access-file", str(self.access), "--control", str(self.control)]
        argv += ["--listen", f"127.0.0.1:{PORT}", *[word for link in links for word in ("--link", link)]]
        if policy:
            config = self.directory / "policy.toml"
            config.write_text(policy)
            argv += ["--config", str(config)]
        self.agent = self._ready(self.lab.mobile.popen(argv, stdout=subprocess.PIPE, unprivileged=True))
        return self.agent

    def accepted_connections(self) -> int:
        """How many TCP connections the server has accepted since the field was new, or cleared."""
        return self.lab.server.accepted_connections() - self._accepted_before

    def clear(self) -> None:
        """As new for the next test: no transfer, no agent, no session at the proxy, all links up, nothing counted."""
        for process in self._running:
            process.stop()
        self._running.clear()
        for link in self.lab.links:
            if link.describe()["state"] != "up":
                link.restore()
        if self.agent is not None:
            self.agent.stop()
            self.agent = None
        self._accepted_before = self.lab.server.accepted_connections()

    def _ready(self, process: LabProcess) -> LabProcess:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == b"ready\n", process.tail()
        return process

    def msocks(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {"MSOCKS_CONTROL": str(self.control)}
        return self.lab.mobile.run([MSOCKS, *arguments], env=environment, check=check)

    def flows(self) -> list[dict[str, Any]]:
        flows: list[dict[str, Any]] = json.loads(self.msocks("flows", "--json").stdout)["flows"]
        return flows

    def carried(self) -> None:
        """Every session, those that have ended too, was carried by the datapath that the proxy was told."""
        carriers = {(flow["datapath"], flow["datapath_reason"]) for flow in self.flows()}
        assert {datapath for datapath, _ in carriers} == {self.datapath}, carriers

    def transfer(self, *options: str, host: str = "server") -> Transfer:
        """Start a pattern client; options as `python -m msocks_lab.pattern_client --help` tells."""
        self._transfers += 1
        record = self.directory / f"transfer-{self._transfers}.json"
        argv = python_argv("msocks_lab.pattern_client", "--socks", f"127.0.0.1:{PORT}", "--record", str(record))
        seed = ["--seed", str(self._transfers)]
        process = self.lab.mobile.popen([*argv, "--progress", *seed, *options, host, str(SERVER_PORT)])
        self._running.append(process)
        return Transfer(process, record)

    def wait_until(self, condition: Callable[[], bool], timeout: float = 15) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"it never came about\n{self.lab.logs('mobile')}"
            time.sleep(0.02)

    def carried_by(self, *links: str, seconds: float = 1.0) -> list[int]:
        """Bytes that each of the mobile's interfaces counts, both directions, in the same while."""
        before = [self.lab.link(link).counters() for link in links]
        time.sleep(seconds)
        crossed = [self.lab.link(link).counters().since(then) for link, then in zip(links, before, strict=True)]
        return [each.bytes_down + each.bytes_up for each in crossed]

    def carrying(self, link: str, seconds: float = 0.5) -> int:
        """The same for one interface."""
        return self.carried_by(link, seconds=seconds)[0]


@pytest.fixture(params=DATAPATHS, scope="session")
def datapath(request: pytest.FixtureRequest) -> str:
    """What the proxy is told to carry sessions with."""
    chosen: str = request.param
    return chosen


@pytest.fixture
def make_field(datapath: str) -> Iterator[Callable[..., Field]]:
    """Builds a lab with the given links; neither the proxy nor the agent runs yet."""
    labs: list[Lab] = []

    def make(*links: LinkConfig) -> Field:
        lab = Lab(LabConfig(links or (WIFI, LTE)))
        lab.__enter__()
        labs.append(lab)
        return Field(lab, datapath)

    yield make
    for lab in labs:
        lab.close()


@pytest.fixture(scope="module")
def lasting_field(datapath: str) -> Iterator[Field]:
    """The two standard links and a running proxy, for all tests of a module."""
    with Lab(LabConfig([WIFI, LTE])) as lab:
        field = Field(lab, datapath)
        field.start_proxy()
        yield field


@pytest.fixture
def field(lasting_field: Field) -> Iterator[Field]:
    """The two standard links, a running proxy, and an agent of the test's own that prefers wifi."""
    lasting_field.start_agent("wifi", "lte")
    yield lasting_field
    lasting_field.clear()
