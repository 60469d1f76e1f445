"""Programs that wait for a peer: BIND (RFC 1928 sections 4 and 6) at the agent's port, carried out at the proxy."""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from msocks.agent.answers import Overload
from msocks.agent.dialogue import SocksDialogue
from msocks.agent.farewell import Farewells
from msocks.agent.local_port import ProgramRequest
from msocks.client.inbound import Wanted
from msocks.client.node import MobileNode
from msocks.errors import ListenError, MsocksError
from msocks.protocol.inbound import Incoming
from msocks.protocol.socks5_wire import Command
from msocks.transport.reactor import FAILED
from msocks.values.endpoint import Endpoint

_log = structlog.get_logger("msocks.agent.binds")

MOST = 256
"""So many programs may wait for peers at the same time; the proxy may allow fewer."""


@dataclass(slots=True, eq=False)
class _Bind:
    request: ProgramRequest
    dialogue: SocksDialogue
    wanted: Wanted | None = None
    told: Endpoint | None = None


class Binds:
    """Leads BIND requests until their peer has come; from then on they are flows like others."""

    def __init__(self, node: MobileNode, farewells: Farewells, on_request: Callable[[ProgramRequest], None]) -> None:
        """`on_request` gets every other request, and those whose peer has come, with `incoming`."""
        self._node = node
        self._farewells = farewells
        self._on_request = on_request
        self._waiting: dict[_Bind, None] = {}

    def on_request(self, request: ProgramRequest) -> None:
        """A program has said what it wants."""
        if request.command is not Command.BIND:
            self._on_request(request)
            return
        assert isinstance(request.dialogue, SocksDialogue)
        bind = _Bind(request, request.dialogue)
        if len(self._waiting) >= MOST:
            self._refuse(bind, Overload(MOST))
            return
        self._waiting[bind] = None
        self._node.reactor.watch(request.sock.fileno(), lambda events: self._on_program(bind, events))
        bind.wanted = self._node.inbound.listen(
            0,
            lambda incoming: self._on_peer(bind, incoming),
            lambda: self._on_change(bind),
            once=True,
            peer=request.destination,
        )

    def close(self) -> None:
        """Nobody waits any more."""
        for bind in list(self._waiting):
            self._forget(bind)
            bind.request.sock.close()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _on_change(self, bind: _Bind) -> None:
        wanted = bind.wanted
        assert wanted is not None
        if wanted.error is not None or wanted.bound is None:
            error = wanted.error or ListenError("the proxy does not listen")
        elif bind.told is None:
            bind.told = wanted.bound
            _log.debug("bind_listens", at=str(wanted.bound), peer=str(bind.request.destination))
            with contextlib.suppress(OSError):  # that the program is gone shows at its socket
                bind.request.sock.send(bind.dialogue.listening(wanted.bound))
            return
        else:
            error = ListenError("the proxy was restarted, and listens elsewhere now", remedy="try again")
        self._forget(bind)
        self._refuse(bind, error)

    def _on_peer(self, bind: _Bind, incoming: Incoming) -> None:
        self._forget(bind)
        self._on_request(replace(bind.request, destination=incoming.peer, incoming=incoming, command=Command.CONNECT))

    def _on_program(self, bind: _Bind, events: int) -> None:
        """It has hung up, or speaks early, which stays in the kernel."""
        if events & (FAILED | select.EPOLLRDHUP):
            self._forget(bind)
            bind.request.sock.close()

    def _forget(self, bind: _Bind) -> None:
        del self._waiting[bind]
        self._node.reactor.unwatch(bind.request.sock.fileno())
        if bind.wanted is not None:
            self._node.inbound.close(bind.wanted)

    def _refuse(self, bind: _Bind, error: MsocksError) -> None:
        _log.info("program_refused", destination=str(bind.request.destination), reason=str(error))
        answer = bind.dialogue.refuse(error)
        self._farewells.say(bind.request.sock, answer)
