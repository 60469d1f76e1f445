"""Links of three hosts become tunnels: TUN devices, which have no link layer, with a program that carries packets."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import threading
from collections.abc import Callable, Iterator
from socket import AF_INET, AF_INET6, AddressFamily

from tests.datapath.three_hosts import VethHost, far_address, near_address

from msocks.values.endpoint import Address

_TUNSETIFF = 0x400454CA
_TUN, _NO_INFORMATION = 1, 0x1000
_MOST_BYTES = 1 << 16


@contextlib.contextmanager
def tunnel(near: VethHost, far: VethHost, link: int) -> Iterator[None]:
    """The link, with its names and addresses, is a tunnel meanwhile."""
    near.ip(f"link delete link{link}")
    ends = [_device(host, link, address) for host, address in ((near, near_address), (far, far_address))]
    stopped, stop = os.pipe()
    carrier = threading.Thread(target=_carry, args=(ends[0], ends[1], stopped))
    carrier.start()
    try:
        yield
    finally:
        os.close(stop)
        carrier.join()
        for descriptor in (stopped, *ends):
            os.close(descriptor)


def _device(host: VethHost, link: int, address: Callable[[int, AddressFamily], Address]) -> int:
    with host.entered():
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", f"link{link}".encode(), _TUN | _NO_INFORMATION))
    v4, v6 = (address(link, family) for family in (AF_INET, AF_INET6))
    host.ip(f"link set link{link} up\naddr add {v4}/24 dev link{link}\naddr add {v6}/64 dev link{link} nodad")
    return descriptor


def _carry(one: int, other: int, stopped: int) -> None:
    across = {one: other, other: one}
    while True:
        ready, _, _ = select.select([one, other, stopped], [], [])
        if stopped in ready:
            return
        for descriptor in ready:
            with contextlib.suppress(BlockingIOError):
                os.write(across[descriptor], os.read(descriptor, _MOST_BYTES))
