"""The state directory, the key in it, and the operator's commands."""

from __future__ import annotations

import os
import ssl
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509

from msocks.errors import AccessLinkError, ConfigurationError
from msocks.store.administration import add_user, list_users, remove_user, set_password
from msocks.store.identity import ProxyIdentity
from msocks.store.state_directory import StateDirectory, StoreError
from msocks.transport.tls import public_key_pin, server_context
from msocks.values.access_link import AccessLink
from msocks.values.endpoint import Endpoint

ADDRESS = Endpoint.parse("192.0.2.1:1080")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_missing_directory_is_made_for_its_owner_alone(tmp_path: Path):
    state = StateDirectory.prepare(tmp_path / "deep" / "state")
    assert mode(state.path) == 0o700


def test_an_empty_directory_is_made_private(tmp_path: Path):
    tmp_path.chmod(0o755)
    StateDirectory.prepare(tmp_path)
    assert mode(tmp_path) == 0o700


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path):
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigurationError, match=r"holds files that are not the proxy's.*chmod 700"):
        StateDirectory.prepare(tmp_path)
    assert mode(tmp_path) == 0o755
    tmp_path.chmod(0o700)
    StateDirectory.prepare(tmp_path)


def test_a_file_is_no_directory(tmp_path: Path):
    (tmp_path / "state").touch()
    with pytest.raises(ConfigurationError, match="is a file"):
        StateDirectory.prepare(tmp_path / "state")


def test_another_users_directory_is_not_written_to(tmp_path: Path):
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(ConfigurationError, match=r"belongs to the user nobody.*runuser -u nobody"):
        add_user(tmp_path, "alice", [ADDRESS])
    assert list(tmp_path.iterdir()) == []


def test_the_key_is_made_once_and_kept(tmp_path: Path):
    state = StateDirectory.prepare(tmp_path)
    first = ProxyIdentity.load_or_create(state)
    assert ProxyIdentity.load_or_create(state) == first
    assert mode(state.identity) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["identity.pem"]


def test_the_pin_is_that_of_the_certificate_in_use(tmp_path: Path):
    identity = ProxyIdentity.load_or_create(StateDirectory.prepare(tmp_path))
    certificate = ssl.PEM_cert_to_DER_cert(
        identity.path.read_text()[identity.path.read_text().index("-----BEGIN CERT") :]
    )
    assert public_key_pin(certificate) == identity.pin
    parsed = x509.load_der_x509_certificate(certificate)
    assert parsed.not_valid_after_utc.year == 9999
    server_context(identity.path)


def test_two_that_make_the_key_at_once_get_the_same(tmp_path: Path):
    state = StateDirectory.prepare(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        pins = set(threads.map(lambda _: ProxyIdentity.load_or_create(state).pin, range(8)))
    assert len(pins) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["identity.pem"]


@pytest.mark.parametrize("damage", ["empty", "garbage", "half", "other key"])
def test_a_damaged_key_is_named_and_not_replaced(tmp_path: Path, damage: str):
    state = StateDirectory.prepare(tmp_path / "state")
    ProxyIdentity.load_or_create(state)
    content = state.identity.read_bytes()
    other = ProxyIdentity.load_or_create(StateDirectory.prepare(tmp_path / "other")).path.read_bytes()
    end_of_key = content.index(b"-----BEGIN CERT")
    damaged = {
        "empty": b"",
        "garbage": b"garbage",
        "half": content[:end_of_key],
        "other key": other[: other.index(b"-----BEGIN CERT")] + content[end_of_key:],
    }[damage]
    state.identity.write_bytes(damaged)
    with pytest.raises(StoreError, match=r"identity\.pem.*backup"):
        ProxyIdentity.load_or_create(state)
    assert state.identity.read_bytes() == damaged


def test_adding_a_user_creates_everything_and_gives_a_link_that_works(tmp_path: Path):
    addresses = [ADDRESS, Endpoint.parse("[2001:db8::1]:1080")]
    link = add_user(tmp_path / "state", "alice", addresses, max_sessions=3)
    assert AccessLink.parse(str(link)) == link
    assert link.addresses == tuple(addresses)
    assert link.pin == ProxyIdentity.load_or_create(StateDirectory(tmp_path / "state")).pin
    (alice,) = list_users(tmp_path / "state")
    assert (alice.name, alice.max_sessions) == ("alice", 3)


def test_addresses_that_no_link_can_hold_add_nobody(tmp_path: Path):
    for addresses in ([], [Endpoint.parse("192.0.2.1:0")], [ADDRESS, ADDRESS]):
        with pytest.raises(AccessLinkError):
            add_user(tmp_path, "alice", addresses)
    add_user(tmp_path, "alice", [ADDRESS])


def test_commands_on_something_else_say_what_they_miss(tmp_path: Path):
    for command in (
        lambda: list_users(tmp_path / "nowhere"),
        lambda: remove_user(tmp_path, "alice"),
        lambda: set_password(tmp_path, "alice", "x"),
    ):
        with pytest.raises(ConfigurationError, match="not the state directory of a proxy"):
            command()
    assert list(tmp_path.iterdir()) == []


def test_removing_and_passwords(tmp_path: Path):
    add_user(tmp_path, "alice", [ADDRESS])
    set_password(tmp_path, "alice", "x")
    assert list_users(tmp_path)[0].has_password
    remove_user(tmp_path, "alice")
    assert list_users(tmp_path) == []
    with pytest.raises(ConfigurationError, match="no user alice"):
        remove_user(tmp_path, "alice")
