"""Ordinary servers for the library's tests: echo, echo over TLS, and one that upgrades on STARTTLS.

Run as `echo_servers.py CERTIFICATE KEY`.
"""

from __future__ import annotations

import asyncio
import ssl
import sys

ECHO, TLS_ECHO, UPGRADE = 7001, 7002, 7003


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


async def serve(certificate: str, key: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go ahead\n")
        await writer.start_tls(context)
        await echo(reader, writer)

    servers = [
        await asyncio.start_server(echo, None, ECHO),
        await asyncio.start_server(echo, None, TLS_ECHO, ssl=context),
        await asyncio.start_server(upgrade, None, UPGRADE),
    ]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
