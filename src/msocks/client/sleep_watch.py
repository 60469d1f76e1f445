"""Notices that this host was asleep, that this process was stopped, or that the clock was set.

After any of these nothing holds that was known of networks, NAT mappings and connections. Three signs are looked at:

- The kernel cancels a timer of the wall clock when that is set, which it does after each suspend as well
  (TFD_TIMER_CANCEL_ON_SET, timerfd_create(2)). The descriptor becomes readable at once, and costs nothing meanwhile.
- CLOCK_BOOTTIME has gone on and CLOCK_MONOTONIC has not: the host was suspended. For where the first is not to be had.
- A timer comes much later than it was due: the process was stopped (SIGSTOP, a debugger, a frozen cgroup).
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable

from msocks.client.association import boot_time_s
from msocks.transport.reactor import Reactor

_SLEPT_S = 3.0
_TFD_TIMER_ABSTIME, _TFD_TIMER_CANCEL_ON_SET = 1, 2
_NEVER_S = 100 * 365 * 86400  # from 1970 on would be near, so from now


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Timer(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class SleepWatch:
    """See the module. `on_wake` is called in the reactor's thread."""

    def __init__(self, reactor: Reactor, on_wake: Callable[[], None]) -> None:
        self._reactor = reactor
        self._on_wake = on_wake
        self._asleep_s = boot_time_s() - time.monotonic()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            self._arm()
            reactor.watch(self._fd, self._on_events)

    def look(self, late_s: float) -> None:
        """Whether this process did not run meanwhile; a timer comes `late_s` seconds after it was due."""
        asleep_s = boot_time_s() - time.monotonic()
        suspended, self._asleep_s = asleep_s - self._asleep_s > _SLEPT_S, asleep_s
        if suspended or late_s > _SLEPT_S:
            self._on_wake()

    def close(self) -> None:
        """Watch no more."""
        if self._fd >= 0:
            self._reactor.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _arm(self) -> None:
        timer = _Timer(value=_Timespec(int(time.time()) + _NEVER_S, 0))
        self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET, ctypes.byref(timer), None)

    def _on_events(self, _events: int) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        except OSError:  # ECANCELED: the clock was set
            self._arm()
            self._on_wake()
