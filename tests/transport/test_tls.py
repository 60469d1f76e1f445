from __future__ import annotations

import ssl

import pytest

from msocks.errors import PinMismatch, ProtocolError
from msocks.store.identity import ProxyIdentity
from msocks.store.state_directory import StateDirectory
from msocks.transport.tls import TlsMachine, client_context, server_context


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> ProxyIdentity:
    return ProxyIdentity.load_or_create(StateDirectory.prepare(tmp_path_factory.mktemp("identity")))


@pytest.fixture
def server(identity: ProxyIdentity) -> TlsMachine:
    return TlsMachine(server_context(identity.path))


@pytest.fixture
def client(identity: ProxyIdentity) -> TlsMachine:
    return TlsMachine(client_context(), pin=identity.pin)


def exchange(client: TlsMachine, server: TlsMachine, piece: int = 1 << 20) -> tuple[bytes, bytes]:
    """Carry bytes until both are silent; returns the plaintext that came out of each."""
    at_client, at_server = b"", b""
    while True:
        up, down = client.outgoing(), server.outgoing()
        if not up and not down:
            return at_client, at_server
        for start in range(0, len(up), piece):
            at_server += server.receive(up[start : start + piece])
        for start in range(0, len(down), piece):
            at_client += client.receive(down[start : start + piece])


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_plaintext_goes_both_ways_whatever_the_pieces(client: TlsMachine, server: TlsMachine, piece: int):
    client.start()
    exchange(client, server, piece)
    assert client.established
    assert server.established
    client.send(b"up" * 1000)
    server.send(b"down" * 20_000)
    assert exchange(client, server, piece) == (b"down" * 20_000, b"up" * 1000)


def test_plaintext_that_comes_with_the_end_of_the_handshake_is_given(client: TlsMachine, server: TlsMachine):
    client.start()
    server.receive(client.outgoing())
    client.receive(server.outgoing())
    client.send(b"hello")
    assert server.receive(client.outgoing()) == b"hello"


def test_an_end_that_was_said_is_told_from_one_that_was_not(client: TlsMachine, server: TlsMachine):
    client.start()
    exchange(client, server)
    client.send(b"last")
    client.close()
    assert server.receive(client.outgoing()) == b"last"
    assert server.closed
    assert not client.closed


def test_another_key_is_refused_before_anything_is_said(server: TlsMachine):
    client = TlsMachine(client_context(), pin=bytes(32))
    client.start()
    server.receive(client.outgoing())
    with pytest.raises(PinMismatch):
        client.receive(server.outgoing())
    assert not client.established
    assert client.outgoing() == b""


def test_an_older_tls_is_refused(server: TlsMachine, identity: ProxyIdentity):
    context = client_context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    client = TlsMachine(context, pin=identity.pin)
    client.start()
    with pytest.raises(ProtocolError, match="TLS failed"):
        server.receive(client.outgoing())


@pytest.mark.parametrize("damage", [b"\x16\x03\x01\x00\x05hello", b"GET / HTTP/1.0\r\n\r\n", bytes(100)])
def test_what_is_no_tls_is_a_protocol_error(server: TlsMachine, damage: bytes):
    with pytest.raises(ProtocolError, match="TLS failed"):
        server.receive(damage)


def test_a_forged_record_is_a_protocol_error(client: TlsMachine, server: TlsMachine):
    client.start()
    exchange(client, server)
    client.send(b"hello")
    record = bytearray(client.outgoing())
    record[-1] ^= 1
    with pytest.raises(ProtocolError):
        server.receive(bytes(record))
