"""What `bulk_client` does, with asyncio streams; no byte is looked at.

    python -m benchmarks.streams_client HOST PORT [--socks HOST:PORT | --library FILE] (--download N | --upload N)
        [--record FILE] [--id NAME]

Prints the same line of JSON as `bulk_client --no-verify --no-receipt`.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

from benchmarks.client_way import Spent, add_arguments, end, open_streams
from msocks.errors import MsocksError
from msocks_lab.arrival import ArrivalMeter
from msocks_lab.errors import TransferError
from msocks_lab.pattern import CHUNK, Pattern
from msocks_lab.transfer import RECEIVE_SIZE, TransferRequest

_TIMEOUT_S = 30.0


async def _transfer(options: argparse.Namespace, meter: ArrivalMeter) -> dict[str, Any]:
    """One direction to its end. Raises TransferError, OSError."""
    request = TransferRequest(download=options.download, upload=options.upload, id=options.id, verify=False)
    reader, writer = await open_streams(options, _TIMEOUT_S)
    began, spent = time.monotonic(), Spent()
    writer.write(request.encode())
    pattern, sent = Pattern(request.seed), 0
    while sent < request.upload:
        data = pattern.at(sent, min(CHUNK, request.upload - sent))
        writer.write(data)
        await writer.drain()
        sent += len(data)
    while meter.total < request.download:
        data = await reader.read(min(RECEIVE_SIZE, request.download - meter.total))
        if not data:
            raise TransferError(f"The stream ended after {meter.total} of {request.download} bytes")
        meter.add(len(data))
    writer.write_eof()
    while await reader.read(RECEIVE_SIZE):
        pass
    figures = {"seconds": time.monotonic() - began, **spent.so_far()}
    writer.close()
    return figures


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="streams_client", description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--download", type=int, default=0, metavar="BYTES")
    what.add_argument("--upload", type=int, default=0, metavar="BYTES")
    parser.add_argument("--id", default="", help="names the server's record")
    parser.add_argument("--record", type=Path, metavar="FILE", help="when the bytes arrived")
    options = parser.parse_args()
    meter = ArrivalMeter()
    result: dict[str, Any] = {"error": ""}
    try:
        result |= asyncio.run(_transfer(options, meter))
    except (OSError, TransferError, MsocksError) as error:
        result["error"] = f"{type(error).__name__}: {error}"
    end(result, meter, options.record)


if __name__ == "__main__":
    main()
