"""Configuration files: read, checked as a whole, explained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from tests.cli.conftest import CommandLine

from msocks.agent.settings import AgentLimits
from msocks.cli.configuration.load import agent_settings, check_file, is_readable_by_others, proxy_config
from msocks.cli.configuration.models import ConfigurationFile
from msocks.cli.configuration.problems import InvalidConfiguration
from msocks.errors import ConfigurationError
from msocks.proxy.config import DatapathChoice, ProxyLimits
from msocks.values.access_link import AccessLink
from msocks.values.endpoint import Endpoint

ACCESS = AccessLink(user="alice", secret=bytes(range(32)), addresses=(Endpoint.parse("192.0.2.1:1080"),), pin=bytes(32))
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"


@pytest.fixture
def access_file(tmp_path: Path) -> Path:
    path = tmp_path / "alice.access"
    path.write_text(f"{ACCESS}\n")
    path.chmod(0o600)
    return path


def problems_of(path: Path, text: str) -> dict[str, tuple[str, str]]:
    path.write_text(text)
    with pytest.raises(InvalidConfiguration) as raised:
        check_file(path)
    return {problem.key: (problem.cause, problem.suggestion) for problem in raised.value.problems}


def test_a_whole_file_becomes_settings(tmp_path: Path, access_file: Path):
    path = tmp_path / "both.toml"
    path.write_text(
        """
        [agent]
        access_file = "alice.access"  # beside this file
        listen = ["127.0.0.1:0", "localhost:1080"]
        links = ["wlan0", "usb0"]
        control = "run/agent.sock"
        [agent.limits]
        connect_timeout_s = 5
        [proxy]
        listen = ["[::]:1080"]
        state = "/var/lib/msocks"
        allow = ["10.20.0.0/16", "192.0.2.1"]
        datapath = "relay"
        splice_ports = "20000-29999"
        half_closed_s = 3600
        detach_grace_s = 0.5
        udp_idle_s = 60
        udp_address = ["192.0.2.1", "2001:db8::1"]
        bind = false
        inbound_address = ["192.0.2.2"]
        [proxy.publish]
        alice = ["2222", "8000-8099"]
        "*" = ["9000"]
        [proxy.limits]
        sessions = 7
        udp_associations = 9
        """
    )
    checked = check_file(path)
    assert checked.agent is not None
    assert checked.proxy is not None
    assert (checked.agent.access, checked.access_file) == (ACCESS, access_file)
    assert [str(endpoint) for endpoint in checked.agent.listen] == ["127.0.0.1:0", "localhost:1080"]
    assert checked.agent.links == ("wlan0", "usb0")
    assert checked.agent.control == str(tmp_path / "run/agent.sock")
    assert checked.agent.limits == AgentLimits(connect_timeout_s=5)
    assert checked.proxy.allow == (ip_network("10.20.0.0/16"), ip_network("192.0.2.1/32"))
    assert (checked.proxy.datapath, checked.proxy.detach_grace_s) == (DatapathChoice.RELAY, 0.5)
    assert (checked.proxy.splice_ports, checked.proxy.half_closed_s) == ((20000, 29999), 3600)
    assert checked.proxy.limits == ProxyLimits(sessions=7, udp_associations=9)
    assert checked.proxy.udp_idle_s == 60
    assert (checked.proxy.bind, checked.proxy.inbound_address) == (False, (ip_address("192.0.2.2"),))
    assert checked.proxy.publish == {"alice": ((2222, 2222), (8000, 8099)), "*": ((9000, 9000),)}
    assert checked.proxy.udp_address == (ip_address("192.0.2.1"), ip_address("2001:db8::1"))


def test_all_problems_are_told_at_once_each_with_a_suggestion(tmp_path: Path):
    found = problems_of(
        tmp_path / "bad.toml",
        """
        [agent]
        access_fil = "x"
        listen = ["127.0.0.1", 5]
        links = []
        allow_remote = "yes"
        [agent.limits]
        flows = 0
        connect_timeout_s = inf
        [proxy]
        state = 5
        allow = ["10.1.2.3/8"]
        datapath = "splices"
        limits = 3
        [prxy]
        """,
    )
    assert all(cause and suggestion for cause, suggestion in found.values())
    assert set(found) == {
        "agent",
        "agent.access_fil",
        "agent.listen[0]",
        "agent.listen[1]",
        "agent.links",
        "agent.allow_remote",
        "agent.limits.flows",
        "agent.limits.connect_timeout_s",
        "proxy.listen",
        "proxy.state",
        "proxy.allow[0]",
        "proxy.datapath",
        "proxy.limits",
        "prxy",
    }
    assert found["agent.access_fil"] == ("there is no such key", "did you mean access_file or access_link?")
    assert found["agent.limits.flows"] == ("is 0; it has to be at least 1", "for instance: flows = 4096")
    assert found["agent.allow_remote"][0] == "is 'yes'; it has to be true or false"
    assert found["proxy.listen"] == ("is missing", 'for instance: listen = ["[::]:1080"]')
    assert "10.0.0.0/8" in found["proxy.allow[0]"][1]
    assert "auto, splice, relay" in found["proxy.datapath"][1]
    assert found["prxy"] == ("there is no such key", "did you mean proxy?")


@pytest.mark.parametrize(
    ("text", "key", "cause"),
    [
        ("", "", "configures nothing"),
        ("[agent", "", "not TOML"),
        ('[proxy]\nudp_address = ["192.0.2.1", "192.0.2.2"]', "proxy.udp_address", "one IP version"),
        ('[proxy]\nudp_address = ["example.net"]', "proxy.udp_address[0]", "no IP address"),
        ('[proxy.publish]\nalice = ["80-22"]', "proxy.publish.alice[0]", "no range"),
        ('[proxy.publish]\nalice = ["ssh"]', "proxy.publish.alice[0]", "no port"),
        ("[proxy.publish]\nalice = [22]", "proxy.publish.alice[0]", "string"),
        ('[agent]\naccess_file = "a"\naccess_link = "b"', "agent", "both"),
        ('[agent]\naccess_file = "nowhere"', "agent.access_file", "cannot be read"),
        ('[agent]\naccess_link = "msocks://alice@h:1"', "agent.access_link", ""),
        ("agent = 3", "agent", "has to be a table"),
        ('[proxy]\nsplice_ports = "20000"', "proxy.splice_ports", "no range"),
        ('[proxy]\nsplice_ports = "-1-20000"', "proxy.splice_ports", "no range"),
        ('[proxy]\nsplice_ports = "22-20000"', "proxy.splice_ports", "no port range"),
        ('[proxy]\nsplice_ports = "30000-20000"', "proxy.splice_ports", "no port range"),
        ('[proxy]\nsplice_ports = "60000-65536"', "proxy.splice_ports", "no port range"),
        ("[proxy]\nsplice_ports = [20000, 30000]", "proxy.splice_ports", "in quotes"),
        ("[proxy]\nhalf_closed_s = 0", "proxy.half_closed_s", "has to be"),
    ],
)
def test_one_problem(tmp_path: Path, text: str, key: str, cause: str):
    assert cause in problems_of(tmp_path / "bad.toml", text)[key][0]


def test_the_secret_is_never_repeated(tmp_path: Path):
    secret = str(ACCESS).partition("@")[0].rpartition(":")[2]
    for value in (f'"{str(ACCESS).replace("pin=", "pn=")}"', f'["{ACCESS}"]'):
        for cause, suggestion in problems_of(tmp_path / "bad.toml", f"[agent]\naccess_link = {value}").values():
            assert secret not in cause + suggestion


def test_options_replace_what_the_file_says(tmp_path: Path, access_file: Path):
    path = tmp_path / "agent.toml"
    path.write_text('[agent]\naccess_link = "broken"\nlisten = ["127.0.0.1:1"]\nlinks = ["wlan0"]\n')
    settings, secret = agent_settings(path, {"access_file": str(access_file), "listen": ["127.0.0.1:2"], "links": None})
    assert (settings.access, secret) == (ACCESS, access_file)
    assert ([str(endpoint) for endpoint in settings.listen], settings.links) == (["127.0.0.1:2"], ("wlan0",))
    path.write_text("[proxy]\n")
    config = proxy_config(path, {"listen": ["127.0.0.1:2"], "state": "/s", "open": True})
    assert (config.state, config.open) == (Path("/s"), True)
    with pytest.raises(InvalidConfiguration, match=r"no table \[agent\]"):
        agent_settings(path, {})


@pytest.mark.parametrize(
    ("text", "error"), [("", "0 lines"), ("a\nb\n", "2 lines"), ("\xff", "0 lines"), ("hello\n", "msocks://")]
)
def test_what_is_no_access_file_is_refused_with_the_reason(access_file: Path, text: str, error: str):
    access_file.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigurationError, match=error):
        agent_settings(None, {"access_file": str(access_file)})


def test_an_access_file_that_others_can_read_is_noticed(access_file: Path, monkeypatch: pytest.MonkeyPatch):
    assert not is_readable_by_others(access_file)
    access_file.chmod(0o640)
    assert is_readable_by_others(access_file)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(access_file.parent))
    assert not is_readable_by_others(access_file)


def test_a_directory_is_no_file(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="Is a directory"):
        check_file(tmp_path)


def test_check_config_prints_the_problems(msocks: CommandLine, access_file: Path):
    path = msocks.directory / "agent.toml"
    path.write_text('[agent]\naccess_file = "alice.access"\nlisen = []\n')
    done = msocks("check-config", "agent.toml")
    assert (done.returncode, done.stderr) == (4, "")
    assert done.stdout == "agent.lisen: there is no such key\n    did you mean listen or links?\n"
    answer = json.loads(msocks("check-config", "--json", "agent.toml").stdout)
    assert answer == {
        "schema": 1,
        "file": "agent.toml",
        "valid": False,
        "configures": [],
        "problems": [
            {"key": "agent.lisen", "cause": "there is no such key", "suggestion": "did you mean listen or links?"}
        ],
    }
    path.write_text('[agent]\naccess_file = "alice.access"\n')
    done = msocks("check-config", "agent.toml")
    assert (done.returncode, done.stdout) == (0, "agent.toml is right; it configures the agent\n")
    assert msocks("check-config", "nowhere.toml").returncode == 4
    assert msocks("agent", "--config", "nowhere.toml").returncode == 4


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def keys_of(model: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Every key of a table with its default, as the reference shows them."""
    keys: dict[str, str] = {}
    for name, field in model.model_fields.items():
        table = next(models_in(field.annotation), None)
        if table is not None:
            keys |= keys_of(table, f"{prefix}{name}.")
            continue
        default = field.get_default()
        match default:
            case bool():
                shown = str(default).lower()
            case float() | int():
                shown = f"{default:g}"
            case list():
                shown = json.dumps([str(each) for each in default])
            case (int(first), int(last)):
                shown = f'"{first}-{last}"'
            case dict():
                shown = "{}"
            case None | str():
                shown = "" if default is None else f'"{default}"'
            case _:
                shown = ""
        keys[f"{prefix}{name}"] = shown
    return keys


def test_the_reference_has_every_key_with_its_default():
    documented: dict[str, str] = {}
    sections = re.split(r"^## `\[([a-z.]+)\]`$", REFERENCE.read_text(), flags=re.MULTILINE)
    for section, body in zip(sections[1::2], sections[2::2], strict=True):
        for key, default in re.findall(r"^\| `([a-z_]+)` \|[^|]*\| ([^|]*?) *\|", body, re.MULTILINE):
            documented[f"{section}.{key}"] = default.strip("`") if default.startswith("`") else ""
    assert documented == keys_of(ConfigurationFile)
