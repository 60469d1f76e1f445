"""What the links of a lab really do, measured with ordinary sockets from the mobile to the server and back."""

from __future__ import annotations

import contextlib
import fcntl
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from msocks_lab.arrival import ArrivalMeter
from msocks_lab.config import Direction, Shape
from msocks_lab.errors import ProcessFailed
from msocks_lab.host import Host
from msocks_lab.lab import Lab
from msocks_lab.process import python_argv
from msocks_lab.wire import scratch_directory

_PORT = 65_000
_ROUND_TRIPS = 40
_FAT_BYTES_PER_SECOND = 300_000_000
_SLOW_START = 0.25  # part of a transfer that does not count for the rate
_HEADERS = 52  # IPv4 20, TCP 20, time stamps 12
_IPV6_HEADERS = 72


@contextlib.contextmanager
def measurement_lock() -> Iterator[None]:
    """Be alone among all processes of this machine that measure time; waits until the others have finished."""
    path = scratch_directory() / "msocks-lab-measurement"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write("Waiting for another timed measurement on this machine to finish ...\n")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True, slots=True)
class LinkMeasurement:
    """Round-trip times in ms of small UDP datagrams, and rates of IP packets in Mbit/s of one TCP connection."""

    link: str
    rtt_median_ms: float
    rtt_min_ms: float
    rtt_max_ms: float
    loss_percent: float
    down_mbit: float
    up_mbit: float

    def to_dict(self) -> dict[str, Any]:
        """A form for JSON."""
        return asdict(self)


def measure(lab: Lab, link: str, seconds: float = 1.0) -> LinkMeasurement:
    """Measure one link, and load it for about `seconds` in each direction.

    Raises ProcessFailed where nothing gets through.
    """
    config = next(item for item in lab.config.links if item.name == link)
    present = lab.link(link).describe()
    target = lab.server.ipv4 if config.ipv4 else lab.server.ipv6
    records = lab.directory
    server = lab.server.popen(python_argv("msocks_lab.pattern_server", "--port", str(_PORT), "--records", str(records)))
    try:
        lab.server.wait_listening(_PORT)
        lab.server.wait_listening(_PORT, protocol="udp")
        client = [*python_argv("msocks_lab.pattern_client", target, str(_PORT)), "--device", link]
        options = ["--echo", str(_ROUND_TRIPS), "--interval", "0.01", "--udp"]
        echo = _run(lab.mobile, [*client, *options])
        round_trips = [1000.0 * value for value in echo["round_trips"] if value is not None]
        if not round_trips:
            raise ProcessFailed(f"No datagram came back over {link}: is it cut or detached?")
        rates = {}
        for direction in (Direction.DOWN, Direction.UP):
            rate = Shape(**present[direction.value]).bytes_per_second
            amount = int((rate or _FAT_BYTES_PER_SECOND) * seconds) + 1
            option = "--download" if direction is Direction.DOWN else "--upload"
            record = records / f"measure-{link}-{direction.value}.json"
            place = ["--record", str(record)] if direction is Direction.DOWN else ["--id", record.stem]
            _run(lab.mobile, [*client, option, str(amount), "--no-verify", *place])
            segment = present["mtu"] - (_HEADERS if config.ipv4 else _IPV6_HEADERS)
            rates[direction] = _steady_rate(ArrivalMeter.load(record)) * present["mtu"] / segment
    finally:
        server.stop()
    return LinkMeasurement(
        link=link,
        rtt_median_ms=round(statistics.median(round_trips), 2),
        rtt_min_ms=round(min(round_trips), 2),
        rtt_max_ms=round(max(round_trips), 2),
        loss_percent=round(100.0 * echo["lost"] / _ROUND_TRIPS, 1),
        down_mbit=round(rates[Direction.DOWN], 2),
        up_mbit=round(rates[Direction.UP], 2),
    )


def _run(host: Host, argv: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(host.run(argv, timeout=120).stdout)
    return result


def _steady_rate(meter: ArrivalMeter) -> float:
    """Payload in Mbit/s after slow start."""
    first = meter.time_of(int(meter.total * _SLOW_START) or 1)
    begun_with = meter.total_at(first)
    return (meter.total - begun_with) * 8e-6 / (meter.times[-1] - first)
