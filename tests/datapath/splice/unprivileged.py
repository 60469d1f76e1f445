"""What happens to somebody who is not root."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable

_NOBODY = 65534
_SETUID = {"x86_64": 105, "aarch64": 146}  # the number of setuid(2), which changes one thread; libc's changes all


def error_of_nobody(call: Callable[[], object]) -> Exception:
    """What `call` raises in a thread without privilege, in the network where the caller is."""
    raised: list[Exception] = []

    def run() -> None:
        assert ctypes.CDLL(None).syscall(_SETUID[os.uname().machine], _NOBODY) == 0
        try:
            call()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0]
