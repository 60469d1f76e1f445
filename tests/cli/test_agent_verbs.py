"""``status``, ``links``, ``flows``, ``move`` and ``sessions`` against a running agent and proxy."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess

from tests.agent.agent_lab import FLOW_KEYS, LINK_KEYS, AgentLab, RunningAgent, echo, receive_exactly
from tests.cli.conftest import CommandLine


async def test_status_and_links_for_people_and_programs(agent: RunningAgent):
    shown = agent.run("status")
    assert shown.returncode == 0
    for part in ("listens   127.0.0.1:", ", as alice", "links     wifi up, lte up", "flows     none"):
        assert part in shown.stdout
    answer = json.loads(agent.run("status", "--json").stdout)
    assert (answer["schema"], answer["authorised"]) == (1, True)

    shown = agent.run("links")
    heading, wifi, lte = (line.split() for line in shown.stdout.splitlines())
    assert heading == ["NAME", "STATE", "RTT", "LOSS", "FLOWS"]
    assert (wifi[:2], lte[:2], wifi[3]) == (["wifi", "up"], ["lte", "up"], "ms")
    answer = json.loads(agent.run("links", "--json").stdout)
    assert set(answer) == {"schema", "links"}
    assert [set(link) for link in answer["links"]] == [LINK_KEYS] * 2


async def test_a_flow_is_listed_moved_and_followed(lab: AgentLab, agent: RunningAgent, msocks: CommandLine):
    assert (agent.run("flows").stdout, agent.run("flows").stderr) == ("", "no flows\n")
    assert json.loads(agent.run("flows", "--json").stdout) == {"schema": 1, "flows": []}
    follower = agent.command("flows", "--follow", stdout=subprocess.PIPE)
    await asyncio.sleep(0.4)
    async with lab.server(echo) as destination:
        with await asyncio.to_thread(agent.connect, destination) as sock:
            sock.sendall(b"x" * 2048)
            await asyncio.to_thread(receive_exactly, sock, 2048)
            answer = json.loads(agent.run("flows", "--json").stdout)
            (flow,) = answer["flows"]
            assert (answer["schema"], set(flow), flow["state"]) == (1, FLOW_KEYS, "live")
            row = agent.run("flows").stdout.splitlines()[1].split()
            assert row[:6] == [flow["id"], "live", "wifi", str(destination), "relay", "0"]

            done = agent.run("move", flow["id"], "--to", "lte")
            assert (done.returncode, done.stdout, done.stderr) == (0, f"{flow['id']}  wifi -> lte\n", "")
            done = agent.run("move", "all", "--to", "wifi", "--json")
            answer = json.loads(done.stdout)
            assert (done.returncode, answer["schema"], answer["to"]) == (0, 1, "wifi")
            assert [(move["id"], move["from"], move["moved"]) for move in answer["moves"]] == [
                (flow["id"], "lte", True)
            ]
            assert agent.flow(destination)["moves"] == 2

            for wanted, link, reason in [(flow["id"], "eth9", "no such network"), ("beef", "lte", "no flow beef")]:
                done = agent.run("move", wanted, "--to", link)
                assert (done.returncode, done.stdout) == (1, "")
                assert reason in done.stderr
                assert done.stderr.count("\n") == 2  # what, and the remedy

            listed = json.loads(msocks("sessions", "--state", str(lab.state), "--json").stdout)
            assert listed["schema"] == 1
            (session,) = [each for each in listed["sessions"] if each["id"] == flow["session"]]
            assert (session["user"], session["destination"], session["generation"]) == ("alice", str(destination), 3)
            assert "alice" in msocks("sessions", "--state", str(lab.state)).stdout
        await agent.until_state(destination, "ended")
    done = agent.run("move", flow["id"], "--to", "lte")
    assert (done.returncode, "has ended" in done.stderr) == (1, True)
    follower.send_signal(signal.SIGINT)
    out, _ = follower.communicate(timeout=10)
    assert follower.returncode == 130
    news = [line.split("  ")[3] for line in out.decode().splitlines() if "parked" not in line]
    assert news == ["opened", "live on wifi", "wifi -> lte (requested)", "lte -> wifi (requested)", "ended"]


def test_output_that_nobody_reads_is_no_error_message(agent: RunningAgent):
    process = agent.command("flows", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(10) in (0, 1)


def test_proxy_and_agent_that_cannot_start_say_why(lab: AgentLab, msocks: CommandLine):
    for arguments, reason in [
        (["proxy", "--listen", "192.0.2.254:0", "--state", "s", "--datapath", "relay"], "192.0.2.254"),
        (["proxy", "--listen", "127.0.0.1:0", "--state", str(lab.state), "--datapath", "relay"], "another proxy runs"),
        (["agent", "--access-file", "nowhere"], "nowhere"),
    ]:
        done = msocks(*arguments)
        assert (done.returncode in (1, 4), done.stdout) == (True, ""), arguments
        assert reason in done.stderr
        assert done.stderr.startswith("msocks: ")


def test_an_agent_does_not_listen_for_others_unless_told(lab: AgentLab, msocks: CommandLine):
    access = msocks.directory / "access"
    access.write_text(f"{lab.access}\n")
    access.chmod(0o640)
    control = str(msocks.directory / "agent.sock")
    done = msocks("agent", "--access-file", "access", "--listen", "0.0.0.0:0", "--control", control)
    assert (done.returncode, "--allow-remote" in done.stderr) == (4, True)
    argv = ["agent", "--access-file", str(access), "--listen", "0.0.0.0:0", "--control", control, "--allow-remote"]
    process = lab.lab.mobile.popen([*done.args[:3], *argv], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    assert process.stop() == 0
    assert "remote_programs_allowed" in process.output()
    assert "access_readable_by_others" in process.output()
    assert process.stdout.read() == b""
