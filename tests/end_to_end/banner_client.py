"""Connects many times through a SOCKS5 server to one that speaks first, run by test_splice_banners.py:

    banner_client.py SOCKS_PORT HOST PORT CONNECTIONS AT_A_TIME BYTES

It prints, as JSON, for each connection the seconds from the SOCKS reply to the last byte of the banner.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time


async def once(socks: int, host: str, port: int, size: int) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", socks)
    writer.write(bytes.fromhex("050100"))
    await reader.readexactly(2)
    writer.write(bytes.fromhex("05010001") + socket.inet_aton(host) + port.to_bytes(2, "big"))
    reply = await reader.readexactly(10)
    assert reply[1] == 0, reply
    began = time.monotonic()
    await reader.readexactly(size)
    took = time.monotonic() - began
    writer.close()
    await writer.wait_closed()
    return took


async def main() -> None:
    socks, port, count, at_a_time, size = (int(sys.argv[number]) for number in (1, 3, 4, 5, 6))
    turns = asyncio.Semaphore(at_a_time)

    async def in_turn() -> float:
        async with turns:
            return await once(socks, sys.argv[2], port, size)

    print(json.dumps(await asyncio.gather(*(in_turn() for _ in range(count)))))


if __name__ == "__main__":
    asyncio.run(main())
