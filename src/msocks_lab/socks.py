"""The smallest SOCKS5 client (RFC 1928, RFC 1929) that a judge of SOCKS servers needs: CONNECT on a blocking socket."""

from __future__ import annotations

import ipaddress
import socket

from msocks_lab.errors import TransferError


def _receive_exactly(connection: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise TransferError(f"The SOCKS server hung up after {bytes(data).hex() or 'nothing'}")
        data += part
    return bytes(data)


def _address(host: str) -> bytes:
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode("idna")
        return bytes([3, len(name)]) + name
    return bytes([1 if parsed.version == 4 else 4]) + parsed.packed


def connect_through(
    connection: socket.socket, host: str, port: int, credentials: tuple[str, str] | None = None
) -> tuple[str, int]:
    """Let the SOCKS server at the other end of `connection` connect to host and port; the bound address it tells.

    Raises TransferError with the reply code where it refuses.
    """
    connection.sendall(b"\x05\x01" + (b"\x02" if credentials else b"\x00"))
    version, method = _receive_exactly(connection, 2)
    if version != 5 or method == 0xFF:
        raise TransferError(f"The SOCKS server answered version {version}, method 0x{method:02x}")
    if method == 2 and credentials:
        user, password = (part.encode() for part in credentials)
        connection.sendall(b"\x01" + bytes([len(user)]) + user + bytes([len(password)]) + password)
        if _receive_exactly(connection, 2)[1] != 0:
            raise TransferError("The SOCKS server refused the password")
    connection.sendall(b"\x05\x01\x00" + _address(host) + port.to_bytes(2, "big"))
    version, reply, _, kind = _receive_exactly(connection, 4)
    if reply != 0:
        raise TransferError(f"The SOCKS server replied 0x{reply:02x}")
    length = {1: 4, 4: 16}.get(kind) or _receive_exactly(connection, 1)[0]
    bound = _receive_exactly(connection, length)
    text = bound.decode("idna") if kind == 3 else str(ipaddress.ip_address(bound))
    return text, int.from_bytes(_receive_exactly(connection, 2), "big")
