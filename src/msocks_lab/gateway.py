"""What an access router does to the mobile's connections itself: a middlebox that splits them, a captive portal."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from msocks_lab import firewall
from msocks_lab.config import LinkConfig, PortalKind
from msocks_lab.errors import CommandError, SetupError
from msocks_lab.node import Node

_PATIENCE = 10.0
_PEP_PORT, _PORTAL_PORT = 8001, 8002


class Gateway:
    """The programs in one access router. A portal stands before the middlebox, if there are both."""

    def __init__(self, link: LinkConfig, router: Node) -> None:
        self._link, self._router = link, router
        self._pep: socket.socket | None = None
        self._portal: subprocess.Popen[bytes] | None = None
        if link.pep:
            self._pep, _ = self._start("msocks_lab.pep", _PEP_PORT, str(link.pep_buffer_bytes))
            firewall.intercept(router, tcp=_PEP_PORT)

    def _start(self, module: str, port: int, argument: str) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        """Run a program in the router; returns when it serves. Raises SetupError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, "-m", module, str(theirs.fileno()), str(port), argument]
        with self._router.namespaces.network():
            process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        ours.settimeout(_PATIENCE)
        if not self._receive(ours, module):
            raise SetupError(f"{module} of {self._link.name} does not run", "See the lab's supervisor.log")
        return ours, process

    def _receive(self, control: socket.socket, module: str) -> bytes:
        try:
            return control.recv(65536)
        except OSError as error:
            raise SetupError(f"{module} of {self._link.name} does not answer: {error}") from error

    def ask_pep(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Have the middlebox do something; what it says. Raises CommandError where there is none."""
        if self._pep is None:
            raise CommandError(f"{self._link.name} has no PEP", "Build the lab with `pep` on this link")
        self._pep.send(json.dumps(command).encode())
        answer: dict[str, Any] = json.loads(self._receive(self._pep, "msocks_lab.pep"))
        return answer

    @property
    def has_pep(self) -> bool:
        """Whether there is a middlebox."""
        return self._pep is not None

    @property
    def is_captive(self) -> bool:
        """Whether a portal lets nothing through."""
        return self._portal is not None

    def close_portal(self, kind: str, udp: bool) -> None:
        """Let nothing through: the portal answers TCP as `kind` says and, with `udp`, datagrams."""
        chosen = PortalKind(kind)
        self._end_portal()
        control, self._portal = self._start("msocks_lab.portal", _PORTAL_PORT, chosen.value)
        control.close()
        firewall.intercept(self._router, tcp=_PORTAL_PORT, udp=_PORTAL_PORT if udp else None, forward=False)
        self._router.flush_conntrack()

    def log_in(self) -> None:
        """Let everything through."""
        if self._portal is None:
            raise CommandError(f"{self._link.name} is not captive", "Use `portal` to make it so")
        firewall.intercept(self._router, tcp=_PEP_PORT if self.has_pep else None)
        self._router.flush_conntrack()
        self._end_portal()

    def _end_portal(self) -> None:
        process, self._portal = self._portal, None
        if process is not None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
