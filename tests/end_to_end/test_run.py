"""`msocks run`: programs of every kind, what they notice of it, what is left alone, and what is left of a run.

That a connection went through the agent is seen at the server: it tells each client what address it comes from.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.end_to_end.conftest import MSOCKS
from tests.end_to_end.ends import eventually
from tests.end_to_end.run_fixtures import PEER_PORT, Runs, links, ran

from msocks_lab import CutMode, LabProcess

__all__ = ["ran"]

# -- programs of every kind -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def static_client(ran: Runs) -> Path:
    """A client that no preloaded library reaches."""
    program = ran.field.directory / "static_client"
    source = Path(__file__).with_name("static_client.c")
    compiler = shutil.which("clang-19") or "clang"
    subprocess.run([compiler, "-static", "-O1", "-Wall", "-Werror", "-o", program, source], check=True, timeout=60)
    assert "INTERP" not in subprocess.run(["readelf", "-l", program], capture_output=True, text=True, check=True).stdout
    return program


def proxy_for(ran: Runs, server: str) -> str:
    """What the server has to see."""
    return ran.lab.proxy.ipv6 if ":" in server else ran.lab.proxy.ipv4


@pytest.mark.parametrize("mode", [[], ["poll"]], ids=["blocking", "as-go-does"])
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_static_program(ran: Runs, static_client: Path, family: str, mode: list[str]):
    server = getattr(ran.lab.server, family)
    words = [str(static_client), server, str(PEER_PORT), *mode]
    assert ran.lab.mobile.run(words).stdout.split()[0] != proxy_for(ran, server)  # as long as it goes by itself
    done = ran(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[0] == proxy_for(ran, server)


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_curl_and_what_a_shell_starts(ran: Runs, family: str):
    server = getattr(ran.lab.server, family)
    url = f"http://[{server}]:{PEER_PORT}/" if ":" in server else f"http://{server}:{PEER_PORT}/"
    done = ran("sh", "-c", f"(curl -sS '{url}'; true) | cat; exit 7")
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.strip() == proxy_for(ran, server)


def test_python_without_blocking_sees_the_destination_that_it_meant(ran: Runs):
    done = ran.python("""
import asyncio
async def main():
    reader, writer = await asyncio.open_connection(S6, PORT)
    mapped = socket.socket(socket.AF_INET6)  # an IPv4 destination by an IPv6 socket
    mapped.setblocking(False)
    await asyncio.get_running_loop().sock_connect(mapped, ("::ffff:" + S4, PORT))
    mapped.send(b"x\\n")
    await asyncio.sleep(0.2)
    writer.write(b"hello\\n")
    writer.write_eof()
    print(writer.get_extra_info("peername")[:2], mapped.getpeername()[:2])
    print((await reader.read()).split(), mapped.recv(100).split())
asyncio.run(main())
""")
    assert done.stderr == ""
    peers, answers = done.stdout.splitlines()
    assert peers == f"({ran.server6!r}, {PEER_PORT}) ('::ffff:{ran.server4}', {PEER_PORT})"
    assert answers == f"[{ran.lab.proxy.ipv6.encode()!r}, b'hello'] [{ran.lab.proxy.ipv4.encode()!r}, b'x']"


def test_rsync_of_a_daemon_is_moved_in_the_middle(ran: Runs):
    directory = ran.field.directory
    (directory / "module").mkdir()
    source = directory / "module" / "file"
    source.write_bytes(bytes(range(256)) * 40_000)
    configuration = directory / "rsyncd.conf"
    configuration.write_text(f"use chroot = no\n[files]\npath = {directory / 'module'}\nuid = root\ngid = root\n")
    ran.lab.server.popen(["rsync", "--daemon", "--no-detach", "--config", configuration, "--port", "8730"])
    ran.lab.server.wait_listening(8730)
    target = directory / "by-rsync"
    target.mkdir()
    words = ["rsync", "--bwlimit=4m", "--inplace", f"rsync://{ran.server4}:8730/files/file", str(target / "file")]
    process = ran.popen("--tag", "backup", *words)
    eventually(lambda: (target / "file").exists() and (target / "file").stat().st_size > 500_000)
    assert ran.field.msocks("move", "all", "--to", "lte").returncode == 0
    assert (target / "file").stat().st_size < source.stat().st_size, "the whole file had come before"
    assert process.wait(30) == 0, process.tail()
    assert hashlib.sha256((target / "file").read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()
    (flow,) = [flow for flow in ran.field.flows() if flow["tag"] == "backup"]
    assert (flow["process"], flow["user"], flow["destination"]) == ("rsync", "root", f"{ran.server4}:8730")
    assert (flow["moves"], flow["last_move"]["from"], flow["last_move"]["to"]) == (1, "wifi", "lte")


@pytest.mark.parametrize("options", [["--link", "lte"], ["--prefer", "eth9", "--prefer", "lte"]], ids=" ".join)
def test_the_link_of_a_run_carries_it(ran: Runs, options: list[str]):
    before = ran.lab.link("lte").counters()
    done = ran(*options, "curl", "-sS", "-o", "/dev/null", f"http://{ran.server4}:{PEER_PORT}/bytes/3000000")
    assert done.returncode == 0, done.stderr
    assert ran.lab.link("lte").counters().since(before).bytes_down > 3_000_000


def test_a_link_that_there_is_not_is_refused(ran: Runs):
    refused = ran("--link", "nosuch0", "true")
    assert refused.returncode == 4
    assert "nosuch0" in refused.stderr


# -- what they notice, and what is left -------------------------------------------------------------------------------

WHO = """
def who(address, port=PORT):
    with socket.create_connection((address, port), 10) as sock:
        sock.sendall(b"x\\n")
        return sock.makefile().readline().strip()
"""


def test_connect_fails_as_the_far_side_fails(ran: Runs):
    done = ran.python("""
def attempt(address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as sock:
        began = time.monotonic()
        error = sock.connect_ex((address, port))
        assert time.monotonic() - began < 5
        again = sock.connect_ex((S6 if family == socket.AF_INET6 else S4, PORT))  # the socket is as good as new
        print(errno.errorcode.get(error, "none"), again)
attempt(S4, 1)
attempt(S6, 1)
attempt("10.255.0.1", 1)     # the proxy's rules do not allow it
attempt("fd00:ffff::1", 1)
attempt(S4, 0)
""")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "ECONNREFUSED 0",
        "ECONNREFUSED 0",
        "EHOSTUNREACH 0",
        "EACCES 0",
        "ECONNREFUSED 0",
    ]


def test_sockets_with_a_source_address_and_with_fast_open(ran: Runs):
    """The source is one of the wifi's; it says nothing of the link, and the agent reaches it over loopback."""
    done = ran.python("""
for server in (S4, S6):
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((server, 1))
        own = probe.getsockname()[0]
    with socket.socket(family) as sock:
        sock.bind((own, 0))
        sock.connect((server, PORT))
        sock.sendall(b"x\\n")
        file = sock.makefile()
        print(file.readline().strip(), file.readline().strip(), sock.getsockname()[0] == own)
    with socket.socket(family) as sock:
        sock.sendto(b"with the SYN\\n", socket.MSG_FASTOPEN, (server, PORT))
        file = sock.makefile()
        print(file.readline().strip(), file.readline().strip(), sock.getpeername()[0] == server)
""")
    assert done.stderr == ""
    proxies = (ran.lab.proxy.ipv4, ran.lab.proxy.ipv6)
    expected = [(f"{each} x True", f"{each} with the SYN True") for each in proxies]
    assert done.stdout.splitlines() == [line for lines in expected for line in lines]


def test_a_program_that_ignores_errors_harms_nobody(ran: Runs):
    done = ran.python(
        """
socks = []
for _ in range(50):
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex((S4, 1))
    sock.connect_ex((S4, 1))
    try:
        sock.send(b"x")
    except OSError:
        pass
    socks.append(sock)
    if len(socks) % 2:
        sock.close()
"""
        + WHO
        + "print(who(S4))"
    )
    assert (done.stdout.strip(), done.stderr) == (ran.lab.proxy.ipv4, "")


def test_a_program_that_forks_and_closes_all_its_descriptors_goes_through_the_agent(ran: Runs):
    done = ran.python(
        WHO
        + """
os.closerange(3, 65536)
os.close(0)  # the next socket is number 0
sock = socket.create_connection((S4, PORT), 10)
children = []
for _ in range(5):
    if not (child := os.fork()):
        os.closerange(3, 65536)
        print(sock.fileno(), who(S4), flush=True)
        os._exit(0)
    children.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
sock.sendall(b"x\\n")  # that the children had it too, and ended, does not harm it
print(sock.makefile().readline().strip(), children, flush=True)
if not os.fork():
    gone = socket.socket()
    gone.setblocking(False)
    gone.connect_ex((S4, PORT))
    os.close(gone.detach())  # in the middle of connect()
    os._exit(0)
os.wait()
print(who(S4))
"""
    )
    proxy = ran.lab.proxy.ipv4
    assert done.stderr == ""
    assert done.stdout.splitlines() == [*[f"0 {proxy}"] * 5, f"{proxy} {[0] * 5}", proxy]


def test_what_is_near_and_what_is_excluded_is_left_alone(ran: Runs):
    """The mobile host's own addresses, loopback, and the proxy: nobody in between, and no flow."""
    flows = len(ran.field.flows())
    done = ran.python(WHO + f"""
own = socket.create_connection((S4, PORT)).getsockname()[0]  # excluded, so this is the mobile's
print(own != "127.0.0.1", who(S4) != {ran.lab.proxy.ipv4!r})
for address in ("127.0.0.1", "::1", own):
    listener = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    client = socket.create_connection(listener.getsockname()[:2])
    peer, name = listener.accept()
    print(name[0] == address, client.getpeername()[0] == address, peer.getpeername() == client.getsockname())
itself = socket.socket()  # a socket that connects to itself
itself.bind(("127.0.0.1", 0))
itself.connect(itself.getsockname())
itself.send(b"x")
print(itself.recv(1))
print(socket.create_connection(({ran.lab.proxy.ipv4!r}, 1080)).getsockname()[0] == own)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
print(raw.connect_ex((S4, 0)))
""", "--exclude", f"{ran.server4}/32")  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["True True", *["True True True"] * 3, "b'x'", "True", "0"]
    assert len(ran.field.flows()) == flows


def test_an_address_is_left_alone_for_as_long_as_it_is_this_hosts(ran: Runs):
    done = ran.python("""
import subprocess
def attempt():
    time.sleep(0.3)
    with socket.socket() as sock:
        sock.settimeout(5)
        return errno.errorcode.get(sock.connect_ex(("203.0.113.5", port)), "connected")
listener = socket.create_server(("0.0.0.0", 0))
port = listener.getsockname()[1]
subprocess.run("ip address add 203.0.113.5/32 dev lo", shell=True, check=True)
print(attempt())
subprocess.run("ip address del 203.0.113.5/32 dev lo", shell=True, check=True)
print(attempt())
""")
    assert (done.stdout.split(), done.stderr) == (["connected", "EHOSTUNREACH"], "")
    (flow,) = [flow for flow in ran.field.flows() if flow["destination"].startswith("203.0.113.5:")]
    assert "rules" in flow["error"]["what"]


def test_exit_status_signals_and_streams_are_the_programs(ran: Runs):
    assert ran("sh", "-c", "cat; echo to-stderr >&2; exit 42", input="through\n").stdout == "through\n"
    assert ran("sh", "-c", "exit 42").returncode == 42
    assert ran("sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM
    for words, status in ((["nosuch-program"], 127), (["/etc/passwd"], 126)):
        done = ran(*words)
        assert done.returncode == status
        assert words[0] in done.stderr
    # SIGPIPE ends it as it would without msocks, and no process is its child that it did not start.
    done = ran("sh", "-c", "yes | head -1; wait; ps -o pid= --ppid $$ | wc -l")
    assert (done.stdout.split(), done.stderr) == (["y", "2"], "")
    process = ran.popen("sh", "-c", "trap 'exit 9' INT; while :; do sleep 0.05; done")
    ran.until(lambda: has_started(process.pid, b"sleep"), "it never started")
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 9


def test_it_runs_as_whoever_called_sudo(ran: Runs):
    script = "id -un; echo $HOME; curl -sS http://$0:$1/; grep CapEff /proc/self/status"
    done = ran("sh", "-c", script, ran.server4, str(PEER_PORT), env={"SUDO_UID": "65534", "SUDO_USER": "nobody"})
    assert (done.returncode, done.stderr) == (0, "")
    name, home, peer, capabilities = done.stdout.splitlines()
    assert (name, home, peer) == ("nobody", "/nonexistent", ran.lab.proxy.ipv4)
    assert int(capabilities.split()[1], 16) == 0
    assert ran.field.flows()[-1]["user"] == "nobody"


def test_nothing_is_left_at_the_end_nor_after_kill_9(ran: Runs):
    ran.until(lambda: not ran.keepers(), "an earlier test's keeper")
    for end in (signal.SIGTERM, signal.SIGKILL):
        process = sleeping(ran)
        ((_, programs),) = ran.keepers().items()
        assert len(programs) >= 6
        group = group_of(process.pid)
        process.send_signal(end)
        assert process.wait(10) == -end
        ran.until_nothing_is_left(programs, group)


def sleeping(ran: Runs) -> LabProcess:
    """A run whose program does nothing, started."""
    process = ran.popen("sleep", "60")
    ran.until(lambda: cmdline(process.pid).startswith(b"sleep"), "it never became the program")
    return process


def cmdline(pid: int) -> bytes:
    """What a process was started with; nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def group_of(pid: int) -> Path:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    name = next(line for line in lines if line.startswith("0::")).removeprefix("0::")
    assert "msocks-run-" in name
    return Path("/sys/fs/cgroup/unified" + name)


def test_a_killed_keeper_leaves_no_hook_and_the_next_run_sweeps_its_group(ran: Runs):
    process = sleeping(ran)
    ((keeper, programs),) = ran.keepers().items()
    group = group_of(process.pid)
    os.kill(keeper, signal.SIGKILL)
    ran.until(lambda: not ran.keepers(), "it lives")
    process.kill()
    process.wait()
    assert group.exists()
    assert ran("true").returncode == 0
    ran.until_nothing_is_left(programs, group)


def test_a_child_that_outlives_the_program_still_goes_through_the_agent(ran: Runs):
    record = ran.field.directory / "daemon"
    may_go = ran.field.directory / "daemon-may-go"
    work = f"while [ ! -e {may_go} ]; do sleep 0.05; done; curl -sS http://{ran.server4}:{PEER_PORT}/ >{record}"
    assert ran("sh", "-c", f"({work}) </dev/null >/dev/null 2>&1 &").returncode == 0  # it does not wait for it
    may_go.touch()
    ran.until(lambda: record.exists() and record.read_text(), "it did not connect")
    assert record.read_text().strip() == ran.lab.proxy.ipv4
    ran.until(lambda: not ran.keepers(), "a keeper is left")


def test_names_go_to_the_proxy_and_no_question_leaves_the_host(ran: Runs):
    # Without its hosts file the program has to ask; a service that would answer for the C library lies in wait.
    hide = (
        "mount --bind /dev/null /etc/hosts; mkdir -p /run/nscd; mount -t tmpfs none /run/nscd; "
        f"python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/run/nscd/socket\")'; {MSOCKS} run --control "
        f"{ran.field.control} --dns proxy --no-udp --tag named sh -c '"
        f"curl -sS http://server:{PEER_PORT}/; curl -sS6 http://server:{PEER_PORT}/; curl -sS http://nosuch.example/; "
        "stat -c %F /run/nscd/socket; getent hosts 198.18.0.1; dd if=/dev/zero of=/dev/udp/192.0.2.99/9 count=1'"
    )
    capture = ran.lab.mobile.capture(ran.field.directory / "dns.pcap", "udp port 53")
    plain = ran.lab.mobile.run(
        ["unshare", "-m", "sh", "-c", "mount --bind /dev/null /etc/hosts; getent hosts a.example"], check=False
    )
    assert plain.returncode == 2  # there is no name server; but this question is in the capture
    time.sleep(0.3)
    asked = capture_packets(ran)
    assert asked > 0
    done = ran.lab.mobile.run(["unshare", "-m", "sh", "-c", hide], check=False)
    lines = done.stdout.splitlines()
    proxies = {ran.lab.proxy.ipv4, ran.lab.proxy.ipv6}
    assert lines[0] in proxies
    assert lines[1] in proxies
    assert lines[2] == "character special file"
    assert lines[3].split() == ["198.18.0.1", "server"]
    assert "nosuch.example" in done.stderr
    time.sleep(0.3)
    assert capture_packets(ran) == asked
    capture.stop()
    destinations = {flow["destination"] for flow in ran.field.flows() if flow["tag"] == "named"}
    assert destinations == {f"server:{PEER_PORT}", "nosuch.example:80"}


def capture_packets(ran: Runs) -> int:
    path = ran.field.directory / "dns.pcap"
    listed = subprocess.run(["tcpdump", "-n", "-r", path], capture_output=True, text=True, check=True).stdout
    return len(listed.splitlines())


@pytest.mark.parametrize("options", [["--no-udp"], ["--dns", "proxy"]], ids=" ".join)
def test_udp_is_refused_where_it_would_go_astray(ran: Runs, options: list[str]):
    done = ran.python("""
def send(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(b"x", (address, 4433))
        except PermissionError:
            return "refused"
        return "sent"
print(send("127.0.0.1"), send(S4), send("198.18.0.1"))
""", *options)  # fmt: skip
    assert done.stdout.split() == ["sent", "refused" if options == ["--no-udp"] else "sent", "refused"]


def test_without_privilege_it_says_which_way_it_takes(ran: Runs, static_client: Path):
    url = f"http://{ran.server4}:{PEER_PORT}/"
    done = ran("curl", "-sS", url, unprivileged=True)
    assert done.stdout.strip() == ran.lab.proxy.ipv4
    assert "msocks run: by /usr/bin/proxychains4" in done.stderr
    assert "control group" in done.stderr
    done = ran("--via", "environment", "curl", "-sS", url, unprivileged=True)
    assert done.stdout.strip() == ran.lab.proxy.ipv4
    assert "msocks run: by environment variables" in done.stderr
    # Without proxychains, and for a program that it could not reach, `auto` takes the variables by itself.
    bare = ["env", "PATH=/nonexistent", *ran.argv("/usr/bin/curl", "-sS", url)]
    done = ran.lab.mobile.run(bare, unprivileged=True)
    assert done.stdout.strip() == ran.lab.proxy.ipv4
    assert "msocks run: by environment variables" in done.stderr
    done = ran(str(static_client), ran.server4, str(PEER_PORT), unprivileged=True)
    assert "static_client is linked statically" in done.stderr
    done = ran("--via", "cgroup", "curl", "-sS", url, unprivileged=True)
    assert (done.returncode, done.stdout) == (4, "")
    assert "run as root" in done.stderr
    done = ran("--tag", "x", "curl", "-sS", url, unprivileged=True)
    assert (done.returncode, done.stdout) == (4, "")
    assert "--tag" in done.stderr


def test_without_an_agent_nothing_is_started_and_nothing_goes_past_it(ran: Runs):
    agent = ran.field.directory / "second.sock"
    words = [
        MSOCKS,
        "agent",
        "--access-file",
        str(ran.field.access),
        "--control",
        str(agent),
        "--listen",
        "127.0.0.1:0",
    ]
    process = ran.lab.mobile.popen(words, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    ready = ran.field.directory / "go"
    script = f"while [ ! -e {ready} ]; do sleep 0.05; done; curl -sS http://{ran.server4}:{PEER_PORT}/"
    program = ran.lab.mobile.popen([MSOCKS, "run", "--control", str(agent), "sh", "-c", script])
    ran.until(lambda: has_started(program.pid, b"sleep"), "it never started")
    process.kill()
    process.wait()
    ready.touch()
    assert program.wait(20) == 7, program.tail()
    assert "connect" in program.tail()
    done = ran.lab.mobile.run([MSOCKS, "run", "--control", str(agent), "touch", "/nonexistent/x"], check=False)
    assert done.returncode == 3
    assert "no agent runs" in done.stderr


HOLDS = """
file = socket.create_connection((S4, PORT), 10).makefile("rw")
def echo(line):
    print(line, file=file, flush=True)
    return file.readline().strip()
echo("first"), file.readline()
print("up", flush=True)
sys.stdin.readline()
try:
    print(echo("again"), flush=True)
except OSError as error:
    print(errno.errorcode[error.errno], flush=True)
"""


def test_a_run_says_what_becomes_of_a_connection_whose_link_is_lost(ran: Runs):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    programs: dict[str, LabProcess] = {}
    for on_loss in ("reset", "wait"):
        program = programs[on_loss] = ran.python_in_background(HOLDS, "--on-loss", on_loss, "--tag", on_loss, **pipes)
        assert program.stdout is not None
        assert program.stdout.readline() == b"up\n", program.tail()

    def states() -> dict[str, str]:
        return {flow["tag"]: flow["state"] for flow in ran.field.flows() if flow["tag"] in programs}

    assert states() == {"reset": "live", "wait": "live"}
    wifi = ran.lab.link("wifi")
    wifi.cut(CutMode.CARRIER)
    try:
        ran.until(lambda: states() == {"reset": "ended", "wait": "parked"}, "they did not notice")
        time.sleep(0.2)
        assert states()["wait"] == "parked"  # although lte is up
    finally:
        wifi.restore()
    for on_loss, said in (("reset", b"ECONNRESET\n"), ("wait", b"again\n")):
        program = programs[on_loss]
        assert program.communicate(b"\n", 20)[0] == said
        assert program.returncode == 0
    ran.field.wait_until(lambda: all(link["state"] == "up" for link in links(ran.field)))


def has_started(pid: int, program: bytes) -> bool:
    """Whether a process has a child that is this program, and not still what it was forked from."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return any(cmdline(int(each)).startswith(program) for each in children)
