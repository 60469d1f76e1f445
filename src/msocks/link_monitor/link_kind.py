"""What sort of network an interface leads to, as far as the kernel tells (sysfs)."""

from __future__ import annotations

import contextlib
from pathlib import Path

from msocks.values.link import LinkKind

_SYSFS = Path("/sys/class/net")


def link_kind(name: str, sysfs: Path = _SYSFS) -> LinkKind:
    """The kind of the interface `name`; ETHERNET where nothing says that it is another.

    A Wi-Fi interface has ``phy80211`` or ``wireless`` there, a modem the device type ``wwan``. One that shows itself
    as a USB network card cannot be told from one.
    """
    place = sysfs / name
    if (place / "phy80211").exists() or (place / "wireless").exists():
        return LinkKind.WIFI
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if "DEVTYPE=wwan" in (place / "uevent").read_text(encoding="ascii").splitlines():
            return LinkKind.CELLULAR
    return LinkKind.ETHERNET
