"""A captive portal in a link's access router: it answers every TCP connection itself, until somebody has logged in.

Started by the lab's supervisor with a socket to tell that it serves, a port, and how to answer; the router's firewall
redirects the mobile's connections here and forwards nothing. The kinds:

    http         302, whatever was said (a hotel's usual portal)
    certificate  TLS 1.3 with a certificate of its own (one that intercepts TLS)
    garbage      bytes that are no protocol at all
    mute         the connection stands, and nothing comes
    close        the connection is closed as soon as something was said

UDP is dropped, or answered with what was said.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys
import tempfile
from pathlib import Path

from msocks_lab.certificate import self_signed

_LOGIN_PAGE = (
    b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)
_GARBAGE = bytes(range(128, 256))
_MUTE_S = 60.0


def _certificate() -> ssl.SSLContext:
    """A server's context with a key and a certificate that nobody has seen before."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as directory:
        context.load_cert_chain(*self_signed(Path(directory), "portal.example"))
    return context


async def _answer(kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        match kind:
            case "http" | "garbage":
                await reader.read(4096)
                writer.write(_LOGIN_PAGE if kind == "http" else _GARBAGE)
            case "mute":
                async with asyncio.timeout(_MUTE_S):
                    while await reader.read(4096):
                        pass
            case _:
                await reader.read(4096)
    except (OSError, TimeoutError):
        pass
    finally:
        writer.close()


def _echo(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.sendto(*sock.recvfrom(65536))


async def serve(kind: str, port: int, ready: socket.socket) -> None:
    """Answer for ever; one byte goes to `ready` when it begins."""
    context = _certificate() if kind == "certificate" else None
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        await asyncio.start_server(lambda reader, writer: _answer(kind, reader, writer), host, port, ssl=context)
        datagrams = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        if family == socket.AF_INET6:
            datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        datagrams.bind((host, port))
        asyncio.get_running_loop().add_reader(datagrams, _echo, datagrams)
    ready.send(b"\n")
    await asyncio.Event().wait()


def main() -> None:
    """`python -m msocks_lab.portal READY_FD PORT KIND`."""
    asyncio.run(serve(sys.argv[3], int(sys.argv[2]), socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
