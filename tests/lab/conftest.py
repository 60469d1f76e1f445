"""What the lab's own tests share: labs to disturb, and programs that try them out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from msocks_lab import Lab, LabConfig, LabProcess, LinkConfig
from msocks_lab.process import python_argv

PORT = 9000


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab with a link of each kind, and a pattern server on its server."""
    links = [
        LinkConfig("wifi", rtt_ms=5, rate_mbit=50),
        LinkConfig("lte", rtt_ms=50, rate_mbit=20, nat=True, nat_udp_idle_s=1, nat_tcp_idle_s=1),
        LinkConfig("fat", fat=True),
        LinkConfig("four", ipv6=False),
        LinkConfig("six", ipv4=False),
        LinkConfig("late", attached=False),
    ]
    with Lab(LabConfig(links)) as built:
        start_pattern_server(built)
        yield built


def start_pattern_server(lab: Lab, *options: str) -> LabProcess:
    process = lab.server.popen(python_argv("msocks_lab.pattern_server", "--port", str(PORT), *options))
    lab.server.wait_listening(PORT)
    lab.server.wait_listening(PORT, protocol="udp")
    return process


def run_client(lab: Lab, *options: str, host: str = "server4", timeout: float = 20) -> dict[str, Any]:
    """Run a pattern client on the mobile; its result, also where it failed."""
    argv = python_argv("msocks_lab.pattern_client", host, str(PORT), *options)
    done = lab.mobile.run(argv, timeout=timeout, check=False)
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode == 0) == (result["error"] == "")
    return result


def lost(lab: Lab, link: str, host: str = "server4", count: int = 10) -> int:
    """How many of `count` UDP echoes do not come back over a link within 0.3 s."""
    options = ["--device", link, "--echo", str(count), "--interval", "0.005", "--udp", "--timeout", "0.3"]
    result = run_client(lab, *options, host=host)
    assert result["error"] == ""
    return int(result["lost"])
