"""How a client of the benchmarks connects: directly, through a SOCKS5 server, or by the library of msocks."""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import machine
from msocks_lab.arrival import ArrivalMeter
from msocks_lab.socks import connect_through


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to, and in which way."""
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--socks", metavar="HOST:PORT", help="go through this SOCKS5 server")
    way.add_argument("--library", type=Path, metavar="FILE", help="by the library, with the access link in FILE")


def end(result: dict[str, Any], meter: ArrivalMeter, record: Path | None) -> NoReturn:
    """Keep when the bytes arrived, print the result as JSON, and exit: with 1 where `result` has an "error"."""
    if record:
        meter.save(record)
    print(json.dumps(result | {"received": meter.total}), flush=True)
    sys.exit(1 if result["error"] else 0)


def connect(options: argparse.Namespace, timeout: float) -> socket.socket:
    """A blocking connection. Raises OSError, TransferError, and what the library raises."""
    if options.library:
        import msocks

        return msocks.create_connection((options.host, options.port), timeout, access=options.library)
    host, port = options.host, options.port
    if options.socks:
        host, _, text = options.socks.rpartition(":")
        port = int(text)
    connection = socket.create_connection((host, port), timeout)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if options.socks:
            connect_through(connection, options.host, options.port)
    except BaseException:
        connection.close()
        raise
    return connection


async def open_streams(
    options: argparse.Namespace, timeout: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The same as asyncio streams."""
    if options.library:
        import msocks

        return await msocks.open_connection(options.host, options.port, access=options.library)
    connection = connect(options, timeout)
    connection.setblocking(False)
    return await asyncio.open_connection(sock=connection)


class Spent:
    """Processor seconds since it was made: of the whole machine, and of this process."""

    def __init__(self) -> None:
        self._machine, self._own = machine.busy_seconds(), time.process_time()

    def so_far(self) -> dict[str, Any]:
        """As `machine_s` and `client_s`."""
        return {"machine_s": machine.busy_seconds() - self._machine, "client_s": time.process_time() - self._own}
