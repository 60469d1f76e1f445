"""How long a connection takes to come about, and then one byte there and back: the same program for every way.

    python -m benchmarks.round_trips HOST PORT [--socks HOST:PORT | --library FILE] [--streams]
        [--connections N] [--seconds S]

The server sends back what it gets (`sessions serve`). Opens N connections one after the other, each with one round
trip, then counts round trips on another one for S seconds. Prints {"connect_ms": median, "round_trips": N, "mean_us":
..., "median_us": ..., "p99_us": ..., "error": text}. The first connection is not counted: it waits for what a program
does once, such as the library's sign-on at the proxy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from typing import Any

from benchmarks.client_way import add_arguments, connect, open_streams
from msocks.errors import MsocksError
from msocks_lab.errors import TransferError

_TIMEOUT_S = 10.0
_WARM_UP = 300  # round trips


def _by_sockets(options: argparse.Namespace) -> dict[str, Any]:
    opened = []
    for _ in range(options.connections + 1):
        began = time.perf_counter()
        with connect(options, _TIMEOUT_S) as connection:
            connection.sendall(b"x")
            _check(connection.recv(1))
            opened.append(time.perf_counter() - began)
    taken: list[float] = []
    with connect(options, _TIMEOUT_S) as connection:
        end = time.perf_counter() + options.seconds
        while (began := time.perf_counter()) < end or len(taken) <= _WARM_UP:
            connection.sendall(b"x")
            _check(connection.recv(1))
            taken.append(time.perf_counter() - began)
    return _figures(opened, taken)


async def _by_streams(options: argparse.Namespace) -> dict[str, Any]:
    opened = []
    for _ in range(options.connections + 1):
        began = time.perf_counter()
        reader, writer = await open_streams(options, _TIMEOUT_S)
        writer.write(b"x")
        _check(await reader.read(1))
        opened.append(time.perf_counter() - began)
        writer.close()
    taken: list[float] = []
    reader, writer = await open_streams(options, _TIMEOUT_S)
    end = time.perf_counter() + options.seconds
    while (began := time.perf_counter()) < end or len(taken) <= _WARM_UP:
        writer.write(b"x")
        _check(await reader.read(1))
        taken.append(time.perf_counter() - began)
    writer.close()
    return _figures(opened, taken)


def _check(answer: bytes) -> None:
    if answer != b"x":
        raise TransferError(f"The byte did not come back, but {answer!r}")


def _figures(opened: list[float], taken: list[float]) -> dict[str, Any]:
    """The figures of connections and round trips in seconds, the first of both left out."""
    counted = sorted(taken[_WARM_UP:])
    return {
        "connect_ms": statistics.median(opened[1:]) * 1e3,
        "round_trips": len(counted),
        "mean_us": statistics.fmean(counted) * 1e6,
        "median_us": statistics.median(counted) * 1e6,
        "p99_us": counted[len(counted) * 99 // 100] * 1e6,
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="round_trips", description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    parser.add_argument("--streams", action="store_true", help="use asyncio streams")
    parser.add_argument("--connections", type=int, default=20, metavar="N", help="at least 1")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="S")
    options = parser.parse_args()
    result: dict[str, Any] = {"error": ""}
    try:
        result |= asyncio.run(_by_streams(options)) if options.streams else _by_sockets(options)
    except (OSError, TransferError, MsocksError) as error:
        result["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(result), flush=True)
    sys.exit(1 if result["error"] else 0)


if __name__ == "__main__":
    main()
