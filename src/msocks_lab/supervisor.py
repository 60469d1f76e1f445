"""The process that owns a lab. It is process 1 of the lab's PID namespace: when it ends, in whatever way, the kernel
ends every process of the lab, closes the namespaces with their last descriptors, and removes their interfaces.

Started as `python -m msocks_lab.supervisor NAME OWNER_PIDFD READY_FD` with the configuration as JSON on stdin.
OWNER_PIDFD is a pidfd of the process that the lab must not outlive, or -1. Over READY_FD goes one JSON line,
{"ready": true} or {"error": {...}}.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from pyroute2.netlink.exceptions import NetlinkError

from msocks_lab.access_link import AccessLink
from msocks_lab.addressing import WIRED_HOSTS, access_plans, hosts_file
from msocks_lab.config import LabConfig
from msocks_lab.errors import CommandError, LabError
from msocks_lab.node import Node
from msocks_lab.proc_net import SocketEntry, sockets, tcp_passive_opens
from msocks_lab.topology import Network
from msocks_lab.wire import runtime_root, socket_path

_RESOLV_CONF = "# Nothing answers here: names that are not in /etc/hosts fail at once.\nnameserver 127.0.0.1\n"

_PATIENCE = 10.0  # seconds for a caller in the middle of a line


class Supervisor:
    """Builds the lab and obeys its callers, one after the other."""

    def __init__(self, name: str, config: LabConfig) -> None:
        self._name, self._config = name, config
        self._directory = runtime_root() / name
        self._events: list[dict[str, Any]] = []
        overlays = {}
        for target, content in ((Path("/etc/hosts"), hosts_file()), (Path("/etc/resolv.conf"), _RESOLV_CONF)):
            source = self._directory / target.name
            source.write_text(content)
            source.chmod(0o644)
            if target.exists():
                overlays[target] = source
        plans = access_plans(config)
        self._network = Network(plans, overlays)
        self._links = {plan.link.name: AccessLink(plan, self._network, config.seed) for plan in plans}
        for link in self._links.values():
            link.wait_ready()
        self._calls: dict[str, Callable[..., Any]] = {
            "describe": self._describe,
            "act": self._act,
            "counters": lambda link: self._link(link).counters(),
            "pep": lambda link: self._link(link).gateway.ask_pep({}),
            "tcp": self._tcp,
            "listening": self._listening,
            "events": lambda: self._events,
        }
        self._actions: dict[str, Callable[..., None]] = {
            "cut": AccessLink.cut,
            "restore": AccessLink.restore,
            "detach": AccessLink.detach,
            "attach": AccessLink.attach,
            "readdress": AccessLink.readdress,
            "lose_family": AccessLink.lose_family,
            "regain_family": AccessLink.regain_family,
            "rebind_nat": AccessLink.rebind_nat,
            "change": AccessLink.change,
            "lose_pep": AccessLink.lose_pep,
            "portal": AccessLink.portal,
            "log_in": AccessLink.log_in,
        }

    def _link(self, name: str) -> AccessLink:
        try:
            return self._links[name]
        except KeyError:
            known = ", ".join(self._links) or "none"
            raise CommandError(f"The lab has no link {name!r}", f"Its links: {known}") from None

    def _describe(self) -> dict[str, Any]:
        return {
            "name": self._name,
            "config": self._config.to_dict(),
            "hosts": {
                name: {"net": node.namespaces.net, "mnt": node.namespaces.mnt}
                for name, node in self._network.nodes.items()
            },
            "links": [link.describe() for link in self._links.values()],
            "wired": {host.name: list(host.addresses) for host in WIRED_HOSTS},
        }

    def _act(self, action: str, link: str, arguments: dict[str, Any]) -> dict[str, Any]:
        target = self._link(link)
        began = time.monotonic()
        self._actions[action](target, **arguments)
        event = {"action": action, "link": link, "arguments": arguments, "began": began, "done": time.monotonic()}
        self._events.append(event)
        return event

    def _node(self, name: str) -> Node:
        try:
            return self._network.nodes[name]
        except KeyError:
            known = ", ".join(self._network.nodes)
            raise CommandError(f"The lab has no host {name!r}", f"Its hosts: {known}") from None

    def _sockets(self, host: str, protocol: str) -> list[SocketEntry]:
        node = self._node(host)
        return sockets(node.proc_net(protocol)) + sockets(node.proc_net(f"{protocol}6"))

    def _tcp(self, host: str) -> dict[str, Any]:
        return {
            "passive_opens": tcp_passive_opens(self._node(host).proc_net("snmp")),
            "sockets": [entry.to_dict() for entry in self._sockets(host, "tcp")],
        }

    def _listening(self, host: str, protocol: str) -> list[int]:
        # A UDP socket without a peer is in the state that TCP calls CLOSE.
        idle = {"tcp": "LISTEN", "udp": "CLOSE"}[protocol]
        return sorted({entry.local_port for entry in self._sockets(host, protocol) if entry.state == idle})

    def answer(self, message: bytes) -> bytes:
        """Obey one call."""
        try:
            request: dict[str, Any] = json.loads(message)
            answer = {"result": self._calls[request["call"]](**request["arguments"])}
        except LabError as error:
            answer = {"error": {"message": error.message, "remedy": error.remedy}}
        except (KeyError, TypeError, ValueError, OSError, NetlinkError) as error:
            traceback.print_exc()
            answer = {"error": {"message": f"{type(error).__name__}: {error}", "remedy": "See supervisor.log"}}
        return json.dumps(answer).encode()


class Server:
    """Waits for callers, for the owner's end, for ended children and for SIGTERM, all in one thread."""

    def __init__(self, supervisor: Supervisor, path: Path, owner: int | None) -> None:
        self._supervisor = supervisor
        self._running = True
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(64)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        if owner is not None:
            self._selector.register(owner, selectors.EVENT_READ, self._stop)
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner; the lab follows it
        self._wake_read = wake_read
        self._selector.register(wake_read, selectors.EVENT_READ, self._reap)

    def _stop(self) -> None:
        self._running = False

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(_PATIENCE)
        reader = connection.makefile("rb")
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._converse(connection, reader))

    def _converse(self, connection: socket.socket, reader: BinaryIO) -> None:
        # A caller sends nothing more before it has its answer, so a line never waits unseen in the reader.
        with contextlib.suppress(OSError):
            if message := reader.readline():
                connection.sendall(self._supervisor.answer(message) + b"\n")
                return
        self._selector.unregister(connection)
        reader.close()
        connection.close()

    def _reap(self) -> None:
        os.read(self._wake_read, 4096)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    def run(self) -> None:
        """Return when the lab shall end."""
        while self._running:
            for key, _ in self._selector.select():
                key.data()


def main() -> None:
    """See the module."""
    name, owner, ready = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    directory = runtime_root() / name
    try:
        config = LabConfig.from_dict(json.load(sys.stdin))
        server = Server(Supervisor(name, config), socket_path(name), None if owner < 0 else owner)
    except BaseException as error:
        if isinstance(error, LabError):
            report = {"message": error.message, "remedy": error.remedy}
        else:
            report = {"message": f"{type(error).__name__}: {error}", "remedy": traceback.format_exc()}
        os.write(ready, json.dumps({"error": report}).encode() + b"\n")
        sys.exit(1)
    os.write(ready, b'{"ready": true}\n')
    os.close(ready)
    try:
        server.run()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
