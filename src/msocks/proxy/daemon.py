"""The proxy as a process: its event loop, its signals, its privileges, its garbage collector."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable

import structlog

from msocks.proxy import log
from msocks.proxy.config import ProxyConfig
from msocks.proxy.privileges import drop_privileges
from msocks.proxy.server import Proxy
from msocks.transport import service_manager
from msocks.transport.garbage import spare_collections

_log = structlog.get_logger("msocks.proxy")

# Objects that were made and not freed. A session makes some dozens; of a spliced one none is in a cycle, of a relayed
# one a few. With Python's threshold, 700, the collector would look after every twentieth session, and mostly in vain.
_COLLECT_AFTER = 5_000
# The writer of session records holds the interpreter for no longer where the event loop wants it. Each system call and
# each HMAC lets go of it, and with Python's 5 ms a thousand sessions that come at once would wait for it each time.
_SWITCH_S = 0.0002


async def run_proxy(config: ProxyConfig, on_ready: Callable[[], None]) -> None:
    """Run a proxy until SIGTERM or SIGINT, or SIGUSR2, which leaves spliced sessions to the next process; a second
    signal ends it at once.

    Args:
        config: What to run.
        on_ready: Called when connections are accepted.

    Raises:
        ConfigurationError: As `Proxy.start`; so do StoreError and ListenError.
    """
    if not structlog.is_configured():
        log.configure()
    loop = asyncio.get_running_loop()
    proxy = Proxy(config)
    await proxy.start()
    drop_privileges(config.state, splices=proxy.splices)
    sys.setswitchinterval(_SWITCH_S)
    spare_collections()
    gc.set_threshold(_COLLECT_AFTER, *gc.get_threshold()[1:])
    asked = asyncio.Event()
    hurried = asyncio.Event()
    leaving = False

    def on_signal(number: signal.Signals) -> None:
        nonlocal leaving
        leaving = leaving or number is signal.SIGUSR2
        (hurried if asked.is_set() else asked).set()

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    for number in signals:
        loop.add_signal_handler(number, on_signal, number)
    try:
        service_manager.notify(service_manager.READY)
        on_ready()
        await asked.wait()
        _log.info("leaving" if leaving else "stopping")
    finally:
        service_manager.notify(service_manager.STOPPING)
        stopping = loop.create_task(proxy.stop(leave=leaving))
        hurrying = loop.create_task(hurried.wait())
        await asyncio.wait({stopping, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        for task in (stopping, hurrying):
            task.cancel()
        await asyncio.gather(stopping, hurrying, return_exceptions=True)
        for number in signals:
            loop.remove_signal_handler(number)


def run(config: ProxyConfig, on_ready: Callable[[], None]) -> None:
    """`run_proxy` in an event loop of its own: uvloop's where it is installed."""
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        runner.run(run_proxy(config, on_ready))


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
