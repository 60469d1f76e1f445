"""The product in a lab, driven by its command line alone, and the lab's pattern server and clients around it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msocks_lab import Lab, LabProcess
from msocks_lab.process import python_argv

MSOCKS = str(Path(sys.executable).with_name("msocks"))
PROXY_PORT = 1080
OPEN_PORT = 1081  # of a proxy for plain SOCKS5 clients
AGENT_PORT = 1082
PATTERN_PORT = 9000
READY_S = 10.0
_POLL_S = 0.02


class BenchmarkError(Exception):
    """A benchmark cannot go on: a program did not start, or did not do what it is measured for."""


@dataclass(frozen=True, slots=True)
class Product:
    """A proxy and an agent that run."""

    lab: Lab
    control: Path
    proxy: LabProcess
    agent: LabProcess

    def msocks(self, *arguments: str, timeout: float = 90.0) -> subprocess.CompletedProcess[str]:
        """Run a verb of `msocks` on the mobile host; what it says on failure is in the result."""
        environment = {"MSOCKS_CONTROL": str(self.control)}
        return self.lab.mobile.run([MSOCKS, *arguments], env=environment, check=False, timeout=timeout)

    def listed(self, verb: str) -> list[dict[str, Any]]:
        """What `msocks flows` or `msocks links` lists. Raises BenchmarkError."""
        done = self.msocks(verb, "--json")
        if done.returncode:
            raise BenchmarkError(f"msocks {verb} ended with {done.returncode}: {done.stderr.strip()}")
        found: list[dict[str, Any]] = json.loads(done.stdout)[verb]
        return found

    def wait_links(self, names: Sequence[str]) -> None:
        """Return when the agent has measured the round trip of all these links."""

        def measured() -> bool:
            rtts = {link["name"]: link["rtt_ms"] for link in self.listed("links") if link["state"] == "up"}
            return all(rtts.get(name) is not None for name in names)

        wait_for(measured, f"the agent to use {' and '.join(names)}")


def wait_for(holds: Callable[[], bool], what: str, timeout_s: float = READY_S) -> None:
    """Return when something holds. Raises BenchmarkError."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"Waited {timeout_s:.0f} s in vain for {what}")
        time.sleep(_POLL_S)


def options(name: str, values: Sequence[str]) -> list[str]:
    """An option given several times."""
    return [word for value in values for word in (name, value)]


def start_ready(process: LabProcess) -> LabProcess:
    """Wait for the line `ready`. Raises BenchmarkError."""
    assert process.stdout is not None
    line = process.stdout.readline().decode().strip()
    if line != "ready":
        process.stop()
        raise BenchmarkError(f"A program on {process.host} did not start: {line}\n{process.tail()}")
    return process


RELAY = "relay"
"""Not what `--datapath auto` would choose: most figures here are the relay's."""


def state_of(lab: Lab) -> Path:
    """The proxy's state directory."""
    return lab.directory / "proxy-state"


def allowed_destinations(lab: Lab) -> list[str]:
    """Options that let a proxy connect to the lab's server."""
    return options("--allow", [f"{address}/{128 if ':' in address else 32}" for address in lab.server.addresses])


def start_proxy(
    lab: Lab, state: Path, datapath: str = RELAY, *, wrapper: Sequence[str] = (), more: Sequence[str] = ()
) -> LabProcess:
    """The proxy for agents; `wrapper` is a command that runs it, `more` are options. Raises BenchmarkError."""
    argv = [*wrapper, MSOCKS, "proxy", "--listen", f"[::]:{PROXY_PORT}", "--state", str(state), "--datapath", datapath]
    argv += [*allowed_destinations(lab), *more]
    return start_ready(lab.proxy.popen(argv, stdout=subprocess.PIPE))


def start_open_proxy(lab: Lab) -> LabProcess:
    """A proxy for plain SOCKS5 clients without authentication, with a state directory of its own."""
    state = str(lab.directory / "open-state")
    listen = ["--listen", f"[::]:{OPEN_PORT}"]
    argv = [MSOCKS, "proxy", *listen, "--state", state, "--open", "--datapath", RELAY, *allowed_destinations(lab)]
    return start_ready(lab.proxy.popen(argv, stdout=subprocess.PIPE))


def access_file(lab: Lab) -> Path:
    """Where `start_product` puts the user's access link."""
    return lab.directory / "access"


def start_product(
    lab: Lab,
    datapath: str = RELAY,
    *,
    wrapper: Sequence[str] = (),
    proxy_options: Sequence[str] = (),
    user_options: Sequence[str] = (),
    agent_options: Sequence[str] = (),
) -> Product:
    """Proxy and agent, run by the command `wrapper` if any; the agent prefers the lab's links in their order.

    Raises BenchmarkError, ProcessFailed.
    """
    access, control = access_file(lab), lab.directory / "agent.sock"
    state = state_of(lab)
    addresses = options("--address", [f"{lab.proxy.ipv4}:{PROXY_PORT}", f"[{lab.proxy.ipv6}]:{PROXY_PORT}"])
    link = lab.proxy.run([MSOCKS, "user", "add", "bench", "--state", str(state), *addresses, *user_options]).stdout
    access.write_text(link)
    access.chmod(0o600)
    proxy = start_proxy(lab, state, datapath, wrapper=wrapper, more=proxy_options)
    argv = [*wrapper, MSOCKS, "agent", "--access-file", str(access), "--listen", f"127.0.0.1:{AGENT_PORT}"]
    argv += ["--control", str(control), *options("--link", [link.name for link in lab.links]), *agent_options]
    agent = start_ready(lab.mobile.popen(argv, stdout=subprocess.PIPE, unprivileged=True))
    return Product(lab, control, proxy, agent)


def start_pattern_server(lab: Lab, *, wrapper: Sequence[str] = ()) -> LabProcess:
    """The lab's server of checkable bytes on the server host; `wrapper` is a command that runs it."""
    argv = python_argv("msocks_lab.pattern_server", "--port", str(PATTERN_PORT), "--records", str(lab.directory))
    process = lab.server.popen([*wrapper, *argv])
    lab.server.wait_listening(PATTERN_PORT)
    return process


def bulk_client(lab: Lab, *arguments: str, wrapper: Sequence[str] = (), target: str = "") -> LabProcess:
    """A client on the mobile host, toward the pattern server at its address `target`, if not the IPv4 one.

    Its result is the line that it prints.
    """
    argv = [*wrapper, *python_argv("benchmarks.bulk_client", target or lab.server.ipv4, str(PATTERN_PORT)), *arguments]
    return lab.mobile.popen(argv, stdout=subprocess.PIPE)


def result_of(client: LabProcess, timeout_s: float) -> dict[str, Any]:
    """What a client has to say at its end; where it does not end in time, it is stopped and says so."""
    try:
        out, _ = client.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        client.terminate()
        out, _ = client.communicate()
    if not out:
        return {"error": f"the client ended with {client.returncode}: {client.tail().strip()}"}
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result
