"""The ways in which a client of `make bench-agent` comes to its server, all of them through one spliced proxy."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks import world
from benchmarks.world import AGENT_PORT, MSOCKS, PROXY_PORT, Product
from msocks_lab import Lab, LabProcess

STAND_IN_PORT = 1085
_HAPROXY = """\
global
    maxconn 2000
    nbthread 1
defaults
    mode tcp
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    option splice-request
    option splice-response
    option tcp-smart-connect
listen standin
    bind 127.0.0.1:{port}
    server proxy {proxy}
"""


@dataclass(frozen=True, slots=True)
class Way:
    """How one client connects; `base` is the way of the same client that is compared with, the splice alone."""

    name: str
    title: str
    base: str
    streams: bool = False
    """Whether the client reads and writes by asyncio streams, and not by a blocking socket."""


SPLICE = Way("splice", "the splice alone", "splice")
AGENT = Way("agent", "agent (SOCKS5)", "splice")
RUN = Way("run", "`msocks run`", "splice")
LIBRARY = Way("library", "library, blocking socket", "splice")
STREAMS_SPLICE = Way("streams-splice", "streams, the splice alone", "streams-splice", streams=True)
STREAMS = Way("streams", "streams, library", "streams-splice", streams=True)
STAND_IN = Way("stand-in", "splice(2) for the agent", "splice")
WAYS = (SPLICE, AGENT, RUN, LIBRARY, STREAMS_SPLICE, STREAMS, STAND_IN)
"""In the order of tables."""
OURS = (AGENT, RUN, LIBRARY, STREAMS)


def way_options(way: Way, lab: Lab) -> list[str]:
    """What a client is told of its way (see `client_way`); `msocks run` needs it to be told nothing."""
    if way in (SPLICE, STREAMS_SPLICE):
        return ["--socks", f"{lab.proxy.ipv4}:{PROXY_PORT}"]
    if way in (LIBRARY, STREAMS):
        return ["--library", str(world.access_file(lab))]
    ports = {AGENT: AGENT_PORT, STAND_IN: STAND_IN_PORT}
    return ["--socks", f"127.0.0.1:{ports[way]}"] if way in ports else []


def way_wrapper(way: Way, product: Product) -> list[str]:
    """The command line that runs the client."""
    return [MSOCKS, "run", "--via", "cgroup", "--control", str(product.control), "--"] if way is RUN else []


def start_stand_in(lab: Lab) -> LabProcess:
    """On the mobile host: haproxy, which moves bytes between a client and the proxy inside the kernel, by splice(2).

    Raises ProcessFailed.
    """
    configuration = Path(lab.directory, "stand-in.cfg")
    configuration.write_text(_HAPROXY.format(port=STAND_IN_PORT, proxy=f"{lab.proxy.ipv4}:{PROXY_PORT}"))
    argv = [shutil.which("haproxy") or "/usr/sbin/haproxy", "-db", "-f", str(configuration)]
    process = lab.mobile.popen(argv)
    lab.mobile.wait_listening(STAND_IN_PORT)
    return process
