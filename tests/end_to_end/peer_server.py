"""A server that tells each client what address it comes from, then echoes: who connected is seen from outside.

`python peer_server.py ADDRESS PORT`. To a GET it answers by HTTP; `/bytes/N` has N bytes.
"""

from __future__ import annotations

import asyncio
import sys


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    peer = f"{writer.get_extra_info('peername')[0]}\n".encode()
    try:
        line = await reader.readline()
        if line.startswith(b"GET "):
            while (await reader.readline()).strip():
                pass
            path = line.split()[1]
            body = bytes(int(path.removeprefix(b"/bytes/"))) if path.startswith(b"/bytes/") else peer
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        else:
            writer.write(peer + line)
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, sys.argv[1], int(sys.argv[2]))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
