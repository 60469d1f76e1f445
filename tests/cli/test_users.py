"""``msocks user`` on a state directory of its own."""

from __future__ import annotations

import json
import stat

from tests.cli.conftest import CommandLine

from msocks.values.access_link import AccessLink


def test_add_prints_the_access_link_alone(msocks: CommandLine):
    done = msocks(
        "user", "add", "alice", "--state", "state", "--address", "192.0.2.1:1080", "--address", "[2001:db8::1]:1080"
    )
    assert (done.returncode, done.stderr) == (0, "")
    link = AccessLink.parse(done.stdout)
    assert done.stdout == f"{link}\n"
    assert (link.user, [str(address) for address in link.addresses]) == (
        "alice",
        ["192.0.2.1:1080", "[2001:db8::1]:1080"],
    )
    assert stat.S_IMODE((msocks.directory / "state").stat().st_mode) == 0o700


def test_qr_code_goes_to_standard_error(msocks: CommandLine):
    done = msocks("user", "add", "alice", "--state", "state", "--address", "192.0.2.1:1080", "--qr")
    assert AccessLink.parse(done.stdout).user == "alice"
    assert "█" in done.stderr or "\033[7m" in done.stderr


def test_life_of_a_user_in_json(msocks: CommandLine):
    added = json.loads(
        msocks("user", "add", "bob", "--state", "s", "--address", "192.0.2.1:1", "--max-sessions", "3", "--json").stdout
    )
    assert (added["schema"], added["name"], set(added)) == (1, "bob", {"schema", "name", "access_link"})
    assert AccessLink.parse(added["access_link"]).user == "bob"
    assert msocks("user", "password", "bob", "--state", "s", stdin=b"secret\n").returncode == 0
    listed = json.loads(msocks("user", "list", "--state", "s", "--json").stdout)
    assert listed["schema"] == 1
    (user,) = listed["users"]
    assert set(user) == {"name", "created_at", "has_password", "max_sessions", "max_channels"}
    assert (user["name"], user["has_password"], user["max_sessions"], user["max_channels"]) == ("bob", True, 3, None)
    assert "bob" in msocks("user", "list", "--state", "s").stdout
    assert msocks("user", "password", "bob", "--state", "s", "--none").returncode == 0
    assert not json.loads(msocks("user", "list", "--state", "s", "--json").stdout)["users"][0]["has_password"]
    assert msocks("user", "remove", "bob", "--state", "s").returncode == 0
    assert json.loads(msocks("user", "list", "--state", "s", "--json").stdout)["users"] == []


def test_what_cannot_be_done_is_status_4_and_says_why(msocks: CommandLine):
    assert msocks("user", "add", "alice", "--state", "s", "--address", "192.0.2.1:1").returncode == 0
    for arguments, reason in [
        (["add", "alice", "--state", "s", "--address", "192.0.2.1:1"], "already a user alice"),
        (["add", "a b", "--state", "s", "--address", "192.0.2.1:1"], "white space"),
        (["remove", "carol", "--state", "s"], "no user carol"),
        (["list", "--state", "nowhere"], "not the state directory"),
        (["password", "alice", "--state", "s"], "0 bytes"),
    ]:
        done = msocks("user", *arguments)
        assert (done.returncode, done.stdout) == (4, ""), arguments
        assert done.stderr.startswith("msocks: ")
        assert reason in done.stderr


def test_sessions_of_a_proxy_that_does_not_run_is_status_3(msocks: CommandLine):
    msocks("user", "add", "alice", "--state", "s", "--address", "192.0.2.1:1")
    done = msocks("sessions", "--state", "s")
    assert (done.returncode, "no proxy runs" in done.stderr) == (3, True)
