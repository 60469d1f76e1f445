"""Thousands of flows through one agent that all carry bytes: does its memory grow with them?"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks import machine, world
from benchmarks.agent_field import ECHO_PORT, LAB, LINK
from benchmarks.world import AGENT_PORT, BenchmarkError, Product
from msocks_lab import Lab, LabProcess
from msocks_lab.process import python_argv

FLOWS = 5000
FLOW_BYTES = 400_000
"""Of one flow, each way, in one pass."""
PASSES = 3
_SPARE = 200  # more flows than that may be there
_PIECE = 64 * 1024
_SETTLE_S = 1.0


def many_flows(flows: int = FLOWS, flow_bytes: int = FLOW_BYTES) -> dict[str, Any]:
    """The memory of one agent: with no flow, when `flows` are open, and after each pass.

    In a pass each flow carries `flow_bytes` each way, all at the same time. Each level has `moved` (bytes so far, both
    ways), `agent` (bytes of its memory, PSS), `kernel` (bytes of the whole machine's), `descriptors` of the agent, and
    `seconds` that it took to get there. Raises BenchmarkError, LabError.
    """
    with Lab(LAB) as lab:
        lab.server.popen(python_argv("benchmarks.echo_server", str(ECHO_PORT), str(_PIECE)))
        lab.server.wait_listening(ECHO_PORT)
        product = _start(lab, flows + _SPARE)
        argv = python_argv("benchmarks.moving_flows", lab.server.ipv4, str(ECHO_PORT))
        argv += ["--socks", f"127.0.0.1:{AGENT_PORT}"]
        client = lab.mobile.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        levels = [_level(product, "no flow", 0, 0.0)]
        seconds = _command(client, f"open {flows}")
        levels.append(_level(product, f"{flows} flows open", 0, seconds))
        toward_server = [each for each in lab.proxy.tcp_sockets() if each["remote_port"] == ECHO_PORT]
        if toward_server:
            raise BenchmarkError(f"{len(toward_server)} flows are not spliced")
        for number in range(1, PASSES + 1):
            seconds = _command(client, f"move {flow_bytes}")
            levels.append(_level(product, f"pass {number}", 2 * number * flows * flow_bytes, seconds))
        if levels[-1]["descriptors"] - levels[0]["descriptors"] < 2 * flows:
            raise BenchmarkError(f"the agent has {levels[-1]['descriptors']} descriptors for {flows} flows")
        return {"flows": flows, "flow_bytes": flow_bytes, "levels": levels}


def _start(lab: Lab, most: int) -> Product:
    settings = lab.directory / "agent.toml"
    settings.write_text(f"[agent.limits]\nflows = {most}\n")
    user, agent = ["--max-sessions", str(most)], ["--config", str(settings)]
    product = world.start_product(lab, "splice", user_options=user, agent_options=agent)
    product.wait_links([LINK])
    return product


def _command(client: LabProcess, line: str) -> float:
    """Have `moving_flows` carry out a command; how many seconds it took."""
    assert client.stdin is not None
    assert client.stdout is not None
    began = time.monotonic()
    client.stdin.write(f"{line}\n".encode())
    client.stdin.flush()
    if client.stdout.readline().decode().strip() != line:
        raise BenchmarkError(f"{line!r} did not come to its end: {client.tail().strip()}")
    return time.monotonic() - began


def _level(product: Product, name: str, moved: int, seconds: float) -> dict[str, Any]:
    time.sleep(_SETTLE_S)
    pids = machine.tree([product.agent.pid])
    return {
        "name": name,
        "moved": moved,
        "agent": machine.resident_bytes(pids),
        "kernel": machine.kernel_bytes(),
        "descriptors": sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
        "seconds": round(seconds, 1),
    }
