"""A testbed for programs that outlive their network: a mobile host with several uplinks, a proxy, a server.

Hosts are network namespaces of this machine; every uplink has a delay, a rate, a queue and faults of its own, can be
cut silently or with loss of carrier, re-addressed, put behind a NAT; and what happens is measured from outside. It
knows nothing of the programs that run in it.
"""

from __future__ import annotations

from msocks_lab.arrival import ArrivalMeter, Gap
from msocks_lab.config import LTE, STANDARD_LAB, WIFI, CutMode, Direction, LabConfig, LinkConfig, PortalKind, Shape
from msocks_lab.errors import CommandError, ConfigError, LabError, ProcessFailed, SetupError, TransferError
from msocks_lab.host import Host
from msocks_lab.lab import Lab
from msocks_lab.link import Event, Link, LinkCounters, PepState
from msocks_lab.measurement import LinkMeasurement, measure, measurement_lock
from msocks_lab.process import LabProcess

__all__ = [
    "LTE",
    "STANDARD_LAB",
    "WIFI",
    "ArrivalMeter",
    "CommandError",
    "ConfigError",
    "CutMode",
    "Direction",
    "Event",
    "Gap",
    "Host",
    "Lab",
    "LabConfig",
    "LabError",
    "LabProcess",
    "Link",
    "LinkConfig",
    "LinkCounters",
    "LinkMeasurement",
    "PepState",
    "PortalKind",
    "ProcessFailed",
    "SetupError",
    "Shape",
    "TransferError",
    "measure",
    "measurement_lock",
]
