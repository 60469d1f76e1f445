"""What this client and the proxy share: an identifier, two keys, and the proxy's clock.

The client chooses the identifier at random, once, and says it in the HELLO of every control channel. The first HELLO
creates the association at the proxy, with fresh keys; the others, on whatever link and in whatever order they come,
attach to it and are told the same keys. So channels that race need not agree on anything.

*The proxy forgets* an association when it is restarted, or when no channel was there for its detach grace. The client
then says HELLO with the same identifier, and gets new keys:

- Nothing can be replayed: what was signed with the old keys does not verify with the new ones, so the proxy's replay
  window may begin anew. Leg and probe numbers go on rising all the same; no number is ever used twice with one key.
- WELCOMEs of an earlier and of a later incarnation of the proxy may overtake each other on two links. The keys that
  count are those of the HELLO that was sent last: a proxy that answers a HELLO was alive when it was sent, so an
  earlier incarnation cannot have answered the later one.

A new identifier would have to be agreed among the channels and would win nothing; it is chosen only where the proxy
says that the old one belongs to somebody else.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from msocks.errors import AuthenticationError, ControlUnavailable
from msocks.protocol.clock import ProxyClock
from msocks.protocol.control import Welcome
from msocks.values.ids import AssociationId


def boot_time_s() -> float:
    """Seconds of CLOCK_BOOTTIME, which goes on while the machine sleeps; a leg's expiry must."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class AssociationKeys:
    """The keys of one incarnation of an association, 32 bytes each.

    Attributes:
        up: Authenticates what the client sends on legs; that of probes is derived from it.
        down: The same for what the proxy sends.
    """

    up: bytes = field(repr=False)
    down: bytes = field(repr=False)


class Association:
    """See the module. Use it on one event loop.

    Attributes:
        id: The identifier.
        keys: What authenticates legs and probes; None until the proxy has told them for the first time. Keys that
            may be outdated stay until there are newer ones.
        ready: Set while there are keys.
        welcome: The last word of the proxy on the association; None before the first.
        refusal: Why the proxy accepts nobody under this access link, said over a channel with the right pin; None
            after a WELCOME.
    """

    def __init__(self) -> None:
        self.id = AssociationId.generate()
        self.keys: AssociationKeys | None = None
        self.ready = asyncio.Event()
        self.welcome: Welcome | None = None
        self.refusal: AuthenticationError | None = None
        self._clock: ProxyClock | None = None
        self._leg_numbers = itertools.count(1)
        self._probe_numbers = itertools.count(1)
        self._hello_numbers = itertools.count(1)
        self._udp_flows = itertools.count(1)
        self._answered_hello = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self._doubters: list[Callable[[], None]] = []

    # -- for legs and probes ----------------------------------------------------------------------------------------

    async def wait_ready(self, timeout_s: float | None) -> AssociationKeys:
        """The keys, as soon as the proxy has told them.

        Raises:
            AuthenticationError: The proxy does not accept this access link.
            ControlUnavailable: The proxy was not reached in time.
        """
        if self.keys is None:
            if self.refusal is not None:
                raise self.refusal
            await self._wait_for_news(timeout_s)
        assert self.keys is not None
        return self.keys

    def next_leg_number(self) -> int:
        """A number that no leg of this association had, above all before."""
        return next(self._leg_numbers)

    def next_probe_number(self) -> int:
        """A number that no probe of this association had, above all before."""
        return next(self._probe_numbers)

    def next_udp_flow(self) -> int:
        """A number that no UDP flow of this association had, above all before."""
        return next(self._udp_flows)

    def expiry_ms(self) -> int:
        """The proxy's time until which a request that is written now is good. Only after the first WELCOME."""
        assert self._clock is not None
        return self._clock.expiry_ms(boot_time_s())

    def clock_told(self, proxy_ms: int) -> None:
        """A verified reply told the proxy's time."""
        self._clock = ProxyClock(proxy_ms, boot_time_s())

    async def renew(self, used: AssociationKeys, timeout_s: float) -> AssociationKeys:
        """The keys to use after a request signed with `used` was refused by "unknown association" or "bad MAC".

        Anybody on the path can forge such a refusal, so it changes nothing by itself: it makes the control channels ask
        the proxy, in TLS. If the proxy was restarted, the channels break and their successors bring new keys. If
        it still knows the association, the keys that come back are `used`. Others go on using them meanwhile.

        Raises:
            AuthenticationError: The proxy does not accept this access link any more.
            ControlUnavailable: The proxy was not reached in time.
        """
        if self.keys == used:
            for doubter in list(self._doubters):
                doubter()
            await self._wait_for_news(timeout_s)
        assert self.keys is not None
        return self.keys

    # -- for control channels ---------------------------------------------------------------------------------------

    def on_doubt(self, doubter: Callable[[], None]) -> None:
        """Call `doubter` when somebody doubts that the proxy still knows the association."""
        self._doubters.append(doubter)

    def hello_number(self) -> int:
        """Tells which of two HELLOs was sent later; draw one when it is sent."""
        return next(self._hello_numbers)

    def welcomed(self, welcome: Welcome, hello_number: int) -> None:
        """The proxy has answered the HELLO with that number."""
        if welcome.association != self.id or hello_number < self._answered_hello:
            return  # about an identifier given up, or an incarnation of the proxy that is over
        self._answered_hello = hello_number
        self.welcome = welcome
        self.keys = AssociationKeys(welcome.key_up, welcome.key_down)
        self.refusal = None
        self.clock_told(welcome.proxy_ms)
        self.ready.set()
        self._wake()

    def confirmed(self) -> None:
        """A channel of the association is alive at both ends: the proxy knows the association."""
        if self.keys is not None:
            self._wake()

    def refused(self, refusal: AuthenticationError) -> None:
        """The proxy does not accept this access link."""
        self.refusal = refusal
        self._wake(refusal)

    def taken(self) -> None:
        """The identifier belongs to another user: choose another. Keys that were told for it are void."""
        self.id = AssociationId.generate()
        self.keys = None
        self.ready.clear()

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _wait_for_news(self, timeout_s: float | None) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            raise self.refusal or ControlUnavailable(
                "the proxy was not reached", remedy="`msocks links` shows what is wrong with each link"
            ) from None
        finally:
            self._waiting.discard(future)

    def _wake(self, error: AuthenticationError | None = None) -> None:
        for future in self._waiting:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
