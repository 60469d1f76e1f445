"""`msocks transparent`: a whole host, and a router; what is left alone, and that nobody is ever locked out.

Whether a connection went through the proxy is seen at the server: it tells each client what address it comes from.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.bpf_maps import program_exists
from tests.end_to_end.conftest import MSOCKS, SERVER_PORT, Transfer
from tests.end_to_end.ends import eventually
from tests.end_to_end.run_fixtures import PEER_PORT
from tests.end_to_end.transparent_fixtures import LAN4, LAN6, Whole, whole_in_lab

from msocks_lab import CutMode, LabProcess
from msocks_lab.process import python_argv

# Carries a line there and back for each that it is given.
TALK = """
import socket, sys
stream = socket.create_connection((sys.argv[1], int(sys.argv[2]))).makefile("rwb", buffering=0)
stream.write(b"first\\n")
stream.readline(), stream.readline()
for number, line in enumerate(sys.stdin, 1):
    stream.write(b"%d\\n" % number)
    print(stream.readline().decode().strip(), flush=True)
"""


@pytest.fixture(scope="module")
def lasting_whole() -> Iterator[Whole]:
    with whole_in_lab() as whole:
        yield whole


@pytest.fixture
def whole(lasting_whole: Whole) -> Iterator[Whole]:
    """Without transparent mode, until the test starts it."""
    yield lasting_whole
    lasting_whole.stop()
    field = lasting_whole.field
    if field.agent is None or field.agent.poll() is not None:  # the test that killed it has failed
        lasting_whole.contain(field.start_agent("wifi", "lte"))


def both(whole: Whole) -> list[tuple[str, str]]:
    """The server's addresses, and what it sees of a connection that comes through the proxy."""
    server, proxy = whole.lab.server, whole.lab.proxy
    return [(server.ipv4, proxy.ipv4), (server.ipv6, proxy.ipv6)]


def flow_to(whole: Whole, destination: str) -> dict[str, Any]:
    """The newest flow to that address."""
    return next(flow for flow in reversed(whole.field.flows()) if destination in flow["destination"])


def download(whole: Whole, server: str, argv: list[str], size: int = 3_000_000) -> Transfer:
    """A program without any proxy in it, whose every byte is checked."""
    record = whole.field.directory / f"transfer-{re.sub('[^0-9]', '-', server)}.json"
    client = python_argv("msocks_lab.pattern_client", "--record", str(record), "--progress")
    words = [*argv, *client, "--download", str(size), "--rate", "4000000", server, str(SERVER_PORT)]
    return Transfer(whole.lab.mobile.popen(words), record)


def moves_in_the_middle(whole: Whole, server: str, argv: list[str]) -> None:
    accepted = whole.lab.server.accepted_connections()
    transfer = download(whole, server, argv)
    transfer.wait_for(500_000)
    assert whole.field.msocks("move", "all", "--to", "lte").returncode == 0
    assert transfer.received() < 3_000_000, "it was over before"
    assert transfer.result()["error"] == ""
    assert whole.lab.server.accepted_connections() == accepted + 1
    assert flow_to(whole, server)["moves"] == 1


def programs_of(process: LabProcess) -> list[int]:
    """The BPF programs that the process behind a LabProcess holds."""
    lines = [each.read_text() for each in Path(f"/proc/{process.pid}/fdinfo").iterdir()]
    return [int(each) for each in re.findall(r"prog_id:\t(\d+)", "".join(lines))]


# -- a whole host -----------------------------------------------------------------------------------------------------


def test_programs_of_the_host_go_through_the_proxy_until_it_is_stopped(whole: Whole):
    before = whole.state()
    direct = [whole.seen(server) for server, _ in both(whole)]
    process = whole.start("--host")
    programs = programs_of(process)
    assert programs
    for server, proxy in both(whole):
        accepted = whole.lab.server.accepted_connections()
        assert whole.seen(server) == proxy
        assert whole.lab.server.accepted_connections() == accepted + 1
        flow = flow_to(whole, server)
        assert (flow["process"], flow["user"], flow["tag"]) == ("curl", "root", "transparent")
    refused = whole.lab.mobile.run(whole.argv("curl", "-sS", f"http://{whole.lab.server.ipv4}:1/"), check=False)
    assert refused.returncode == 7  # connect() itself fails: nobody has accepted in the server's name
    assert process.stop() == 0
    assert whole.state() == before
    assert [whole.seen(server) for server, _ in both(whole)] == direct
    assert not any(program_exists(each) for each in programs)


def test_a_download_of_the_host_moves(whole: Whole):
    whole.start("--host")
    moves_in_the_middle(whole, whole.lab.server.ipv6, whole.argv())


@pytest.mark.long
def test_what_is_excluded_and_what_is_near_goes_directly(whole: Whole):
    """IPv6 is excluded; the gateway of the Wi-Fi is on the mobile's own network, and udp is nobody's business."""
    gateway = "2001:db8:1::1"
    script = Path(__file__).with_name("peer_server.py")
    whole.lab.host("radio-wifi").popen([sys.executable, str(script), gateway, str(PEER_PORT)])
    whole.lab.host("radio-wifi").wait_listening(PEER_PORT)
    (server4, proxy4), (server6, _) = both(whole)
    direct6 = whole.seen(server6)
    config = whole.field.directory / "transparent.toml"
    config.write_text(f'[transparent]\nhost = true\nexclude = ["{server6}/128"]\n')
    whole.start("--config", str(config))
    assert whole.seen(server4) == proxy4
    assert whole.seen(server6) == direct6
    assert whole.seen(gateway).startswith("2001:db8:1:")
    datagrams = ["--udp", "--echo", "2", "--interval", "0.01", server4, str(SERVER_PORT)]
    capture = whole.lab.server.capture(whole.field.directory / "udp.pcap", f"udp dst port {SERVER_PORT}")
    echoed = whole.lab.mobile.run(whole.argv(*python_argv("msocks_lab.pattern_client", *datagrams)), check=False)
    capture.stop()
    assert echoed.returncode == 0, echoed.stdout
    path = whole.field.directory / "udp.pcap"
    seen = subprocess.run(["tcpdump", "-n", "-r", path], capture_output=True, text=True, check=True).stdout
    assert "10.1.0.2" in seen  # the mobile's own address; the proxy's would be another
    assert proxy4 not in seen


def test_nobody_is_locked_out_when_the_agent_or_the_keeper_is_killed(whole: Whole):
    server, proxy = both(whole)[0]
    direct = whole.seen(server)
    process = whole.start("--host")
    assert whole.seen(server) == proxy
    field = whole.field
    assert field.agent is not None
    field.agent.kill()
    field.agent.wait()
    assert whole.seen(server) == direct
    whole.contain(field.start_agent("wifi", "lte"))
    eventually(lambda: whole.seen(server) == proxy)  # it has found the new one
    programs = programs_of(process)
    process.kill()
    process.wait()
    assert whole.seen(server) == direct
    assert not any(program_exists(each) for each in programs)


@pytest.mark.long
@pytest.mark.parametrize("options", [("--host",), ("--router", "lan0")], ids=" ".join)
def test_nobody_is_locked_out_when_the_agent_hangs(whole: Whole, options: tuple[str, ...]):
    prefix = None if options == ("--host",) else whole.behind()
    server, proxy = both(whole)[0]
    direct = whole.seen(server, prefix=prefix)
    whole.start(*options)
    assert whole.seen(server, prefix=prefix) == proxy
    agent = whole.field.agent
    assert agent is not None
    agent.send_signal(signal.SIGSTOP)
    try:
        waiting = whole.lab.mobile.popen(whole.argv("curl", "-sS", f"http://{server}:{PEER_PORT}/"))
        eventually(lambda: whole.curl(server, "-m", "0.5", prefix=prefix).stdout.strip() == direct)
        if prefix is None:
            assert waiting.wait(10) == 7  # it was in connect() before anybody could know
        waiting.stop()
    finally:
        agent.send_signal(signal.SIGCONT)
    eventually(lambda: whole.seen(server, prefix=prefix) == proxy)


@pytest.mark.long
def test_in_an_outage_new_connections_wait_or_go_directly_as_they_were_told(whole: Whole):
    """An agent that may use the LTE alone, on a host that has Wi-Fi as well."""
    control = whole.field.directory / "lte.sock"
    words = [MSOCKS, "agent", "--access-file", str(whole.field.access), "--control", str(control), "--link", "lte"]
    agent = whole.lab.mobile.popen([*words, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, unprivileged=True)
    assert agent.stdout is not None
    agent.stdout.readline()
    whole.contain(agent)
    server, proxy = both(whole)[0]
    direct = whole.seen(server)
    link = whole.lab.link("lte")
    try:
        process = whole.start("--host", "--on-outage", "direct", control=control)
        eventually(lambda: whole.seen(server) == proxy)
        link.cut(CutMode.CARRIER)
        # What came before the agent knew waits for the link.
        eventually(lambda: whole.curl(server, "-m", "0.5").stdout.strip() == direct)
        link.restore()
        eventually(lambda: whole.seen(server) == proxy)
        process.stop()
        whole.start("--host", control=control)
        assert whole.seen(server) == proxy
        link.cut(CutMode.CARRIER)
        eventually(lambda: whole.curl(server, "-m", "0.5").returncode == 28)  # it waits
        assert whole.curl(server, "-m", "1").returncode == 28
    finally:
        link.restore()
        whole.stop()
        agent.stop()
        agent.end()


@pytest.mark.parametrize("options", [("--host",), ("--router", "lan0")], ids=" ".join)
def test_without_privilege_it_says_what_to_do(whole: Whole, options: tuple[str, ...]):
    before = whole.state()
    process = whole.start_somehow(*options, unprivileged=True)
    assert process.wait(20) == 4
    assert "not permitted" in process.tail()
    assert re.search(r"run as root \(sudo\), or with CAP_", process.tail())
    assert whole.state() == before


# -- a router ---------------------------------------------------------------------------------------------------------


def test_hosts_behind_the_router_go_through_the_proxy_until_it_is_stopped(whole: Whole):
    behind = whole.behind()
    before = whole.state()
    direct = [whole.seen(server, prefix=behind) for server, _ in both(whole)]
    own = whole.seen(whole.lab.server.ipv4)
    (server, _), _ = both(whole)
    # A connection that stands is not touched.
    talk = [sys.executable, "-c", TALK, server, str(PEER_PORT)]
    standing = whole.lab.mobile.popen([*behind, *talk], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert say(standing) == "1"
    process = whole.start("--router", "lan0")
    for (server, proxy), source in zip(both(whole), (LAN4, LAN6), strict=True):
        accepted = whole.lab.server.accepted_connections()
        assert whole.seen(server, prefix=behind) == proxy
        assert whole.lab.server.accepted_connections() == accepted + 1
        flow = flow_to(whole, server)
        assert (flow["source"], flow["process"], flow["tag"]) == (source, None, "transparent")
    assert whole.seen(whole.lab.server.ipv4) == own  # the router's own programs are not meant
    refused = whole.lab.mobile.run([*behind, "curl", "-sS", f"http://[{server}]:1/"], check=False)
    assert refused.returncode in (7, 56), refused.stderr  # reset
    assert flow_to(whole, f"{server}]:1")["error"] is not None
    assert say(standing) == "2"
    assert process.stop() == 0
    assert whole.state() == before
    assert [whole.seen(server, prefix=behind) for server, _ in both(whole)] == direct
    assert say(standing) == "3"
    process = whole.start("--router", "lan0")
    assert whole.seen(server, prefix=behind) == proxy
    process.kill()
    process.wait()
    assert whole.seen(server, prefix=behind) == direct[1]
    assert "msocks_transparent" not in whole.state()
    assert whole.field.msocks("transparent", "--sweep").stdout == "removed\n"
    assert whole.state() == before
    assert standing.stdin is not None
    standing.stdin.close()
    standing.end()


def say(process: LabProcess) -> str:
    """Have the connection carry a line there and back; how many that were."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"go\n")
    process.stdin.flush()
    return process.stdout.readline().decode().strip()


@pytest.mark.long
def test_a_download_of_a_host_behind_the_router_moves(whole: Whole):
    behind = whole.behind()
    whole.start("--router", "lan0", "--exclude", whole.lab.server.ipv6)
    moves_in_the_middle(whole, whole.lab.server.ipv4, behind)
    assert whole.seen(whole.lab.server.ipv6, prefix=behind) != whole.lab.proxy.ipv6


@pytest.mark.long
def test_nobody_behind_the_router_is_locked_out_when_the_agent_or_the_keeper_is_killed(whole: Whole):
    behind = whole.behind()
    before = whole.state()
    server, proxy = both(whole)[1]
    direct = whole.seen(server, prefix=behind)
    process = whole.start("--router", "lan0")
    assert whole.seen(server, prefix=behind) == proxy
    field = whole.field
    assert field.agent is not None
    field.agent.send_signal(signal.SIGKILL)
    field.agent.wait()
    assert whole.seen(server, prefix=behind) == direct
    field.start_agent("wifi", "lte")
    eventually(lambda: whole.seen(server, prefix=behind) == proxy)
    # A flow of the other host ends when its packets go another way.
    transfer = download(whole, whole.lab.server.ipv4, behind, size=40_000_000)
    transfer.wait_for(500_000)
    process.kill()
    process.wait()
    assert whole.seen(server, prefix=behind) == direct
    assert "msocks_transparent" not in whole.state()
    assert transfer.process.wait(10) == 1
    found = json.loads(field.msocks("doctor", "--json", check=False).stdout)
    assert found["transparent_left_over"] == 2
    swept = field.msocks("transparent", "--sweep").stdout
    assert swept == "removed\n"
    assert whole.state() == before


# -- both, by rules ---------------------------------------------------------------------------------------------------

POLICY = """
[[policy.rule]]
name = "behind"
source = ["192.168.77.0/24", "2001:db8:77::/64"]
prefer = ["lte"]

[[policy.rule]]
name = "curl"
process = ["curl"]
tag = ["whole"]
prefer = ["wifi"]
"""


@pytest.mark.long
def test_rules_know_the_program_and_the_other_host(whole: Whole):
    field, behind = whole.field, whole.behind()
    assert field.agent is not None
    field.agent.stop()
    whole.contain(field.start_agent("wifi", "lte", policy=POLICY))
    whole.start("--host", "--router", "lan0", "--tag", "whole")
    for server, proxy in both(whole):
        for prefix, rule, link in ((behind, "behind", "lte"), (whole.argv(), "curl", "wifi")):
            before = whole.lab.link(link).counters()
            assert whole.seen(server, prefix=prefix) == proxy
            assert flow_to(whole, server)["rule"] == rule
            grown = whole.lab.link(link).counters().since(before)
            assert grown.bytes_up > 500
    field.agent.stop()
    whole.contain(field.start_agent("wifi", "lte"))
