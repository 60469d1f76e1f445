"""`msocks-lab` as a person uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from msocks_lab import launch
from msocks_lab.cli import main as program

VERBS = sorted(program.commands)


def lab_program(*arguments: str, input: str = "") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "msocks_lab.cli", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, input=input, check=False)


def told(*arguments: str) -> dict[str, Any]:
    """Run a command with --json and return what it prints."""
    done = lab_program(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)
    assert data["schema"] == 1
    return data


@pytest.fixture(scope="module")
def name() -> Iterator[str]:
    name = f"cli-{os.getpid()}"
    links = ["--link", "wifi:rtt=10,rate=40", "--link", "lte:rtt=20,rate=20,nat,down.loss=3"]
    done = lab_program("up", "--name", name, *links, "--no-validate")
    assert done.returncode == 0, done.stderr
    assert f"Lab {name} is up" in done.stdout
    yield name
    ended = lab_program("down", name)
    assert ended.returncode == 0, ended.stderr
    assert name not in told("list")["labs"]


def test_it_outlives_the_program_that_built_it(name: str):
    assert not launch.is_tied(name)
    assert name in told("list")["labs"]
    assert name in lab_program("list").stdout.split()


def test_status_shows_hosts_and_links(name: str):
    data = told("status", "--lab", name)
    assert data["hosts"]["server"] == ["198.51.100.2", "2001:db8:f1::2"]
    assert [link["name"] for link in data["links"]] == ["wifi", "lte"]
    assert data["links"][1]["down"]["loss_percent"] == 3
    text = lab_program("status", "--lab", name).stdout
    assert "up 5 ms, 40 Mbit/s; down 5 ms, 40 Mbit/s; MTU 1500" in text
    assert "3% loss; MTU 1500; NAT" in text


def test_shell_runs_a_command_with_its_code_and_its_input(name: str):
    script = "cat; echo $MSOCKS_LAB_HOST; exit 7"
    done = lab_program("shell", "--lab", name, "mobile", "--", "sh", "-c", script, input="hi\n")
    assert (done.stdout, done.returncode) == (f"hi\n{name}/mobile\n", 7)
    assert lab_program("shell", "--lab", name, "server", "sh", "-c", "kill -9 $$").returncode == 137
    without = lab_program("shell", "--lab", name, "--unprivileged", "mobile", "ip", "link", "set", "wifi", "down")
    assert without.returncode == 2
    assert "Operation not permitted" in without.stderr


def test_links_are_cut_changed_and_restored(name: str):
    def state(link: str) -> dict[str, Any]:
        return next(item for item in told("status", "--lab", name)["links"] if item["name"] == link)

    event = told("cut", "wifi", "--carrier", "--lab", name)
    assert event["action"] == "cut"
    assert event["began"] <= event["done"]
    assert state("wifi")["state"] == "cut (carrier)"
    told("restore", "wifi", "--lab", name)
    told("cut", "wifi", "--direction", "up", "--lab", name)
    assert state("wifi")["state"] == "cut (silent, up)"
    told("restore", "wifi", "--lab", name)
    told("detach", "wifi", "--lab", name)
    assert state("wifi")["state"] == "detached"
    told("attach", "wifi", "--lab", name)
    addresses = state("wifi")["addresses"]
    told("readdress", "wifi", "--lab", name)
    assert state("wifi")["addresses"] != addresses
    told("nat-rebind", "lte", "--lab", name)
    told("set", "lte", "rtt=40", "up.rate=1", "mtu=1400", "--lab", name)
    changed = state("lte")
    assert (changed["up"]["delay_ms"], changed["up"]["rate_mbit"], changed["down"]["rate_mbit"]) == (20, 1, 20)
    assert changed["mtu"] == 1400
    assert lab_program("cut", "wifi", "--lab", name).stdout.startswith("cut wifi: done in ")
    assert lab_program("restore", "wifi", "--lab", name).returncode == 0


def test_a_link_is_made_captive_and_free(name: str):
    assert told("portal", "wifi", "--kind", "garbage", "--udp", "--lab", name)["action"] == "portal"
    assert told("status", "--lab", name)["links"][0]["state"] == "captive"
    assert told("log-in", "wifi", "--lab", name)["action"] == "log_in"
    assert told("status", "--lab", name)["links"][0]["state"] == "up"
    assert "has no PEP" in lab_program("lose-pep", "wifi", "--lab", name).stderr


def test_validate_prints_the_real_figures(name: str):
    found = told("validate", "wifi", "--lab", name)["links"][0]
    assert 10 <= found["rtt_median_ms"] < 12
    assert found["down_mbit"] == pytest.approx(40, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["cut", "umts"], 1, "has no link 'umts'. Its links: wifi, lte"),
        (["attach", "wifi"], 1, "attached already"),
        (["nat-rebind", "wifi"], 1, "has no NAT"),
        (["cut", "wifi", "--carrier", "--direction", "up"], 1, "has no direction"),
        (["set", "wifi", "speed=3"], 1, "no property of a link"),
        (["set", "wifi", "mtu=big"], 2, "not a whole number"),
        (["set", "wifi", "mtu=100"], 1, "MTU of 100"),
        (["shell", "moon"], 1, "no host 'moon'"),
    ],
)
def test_errors_name_the_remedy(name: str, arguments: list[str], code: int, complaint: str):
    options = ["--lab", name]
    done = lab_program(arguments[0], *options, *arguments[1:])
    assert done.returncode == code
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_lab_that_does_not_run_is_told(name: str):
    for arguments in (["status", "--lab", "nowhere"], ["down", "nowhere"], ["down", "--lab", "nowhere"]):
        done = lab_program(*arguments)
        assert done.returncode == 1
        assert "There is no lab 'nowhere'" in done.stderr
    again = lab_program("up", "--name", name, "--no-validate")
    assert again.returncode == 1
    assert f"msocks-lab down {name}" in again.stderr
    bad = lab_program("up", "--link", "wifi:speed=3")
    assert bad.returncode == 1
    assert "Known: " in bad.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str):
    done = lab_program(verb, "--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 5
