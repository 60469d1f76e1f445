"""What the operator can ask of a running proxy: HTTP on a Unix socket in the state directory, for its owner alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import structlog

from msocks.datapath.interface import Datapath
from msocks.proxy.session_host import SessionView
from msocks.proxy.udp_host import UdpView
from msocks.store.running_proxy import short_socket_path
from msocks.transport.local_http import Answer, LocalHttpServer, Request, RequestRefused, Route

SCHEMA = 1

_log = structlog.get_logger("msocks.proxy.admin_api")


class AdminApi:
    """What it answers.

    ``GET /sessions`` lists the sessions, ``GET /udp`` the UDP associations; ``GET /troubles`` counts what the datapath
    has lost or refused; ``POST /users-changed`` makes the proxy look at its users now.
    """

    def __init__(
        self,
        path: Path,
        *,
        sessions: Callable[[], Iterable[SessionView]],
        udp: Callable[[], Iterable[UdpView]],
        datapath: Datapath,
        now: Callable[[], float],
        users_changed: Callable[[], None],
    ) -> None:
        self._path = path
        self._sessions = sessions
        self._udp = udp
        self._datapath = datapath
        self._now = now
        self._users_changed = users_changed
        self._server = LocalHttpServer(
            [
                Route("GET", "/sessions", self._get_sessions),
                Route("GET", "/udp", self._get_udp),
                Route("GET", "/troubles", self._get_troubles),
                Route("POST", "/users-changed", self._post_users_changed),
            ],
            _told,
        )

    async def start(self) -> None:
        """Listen. A socket that a dead proxy left behind is replaced; the caller makes sure that none lives."""
        self._path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with short_socket_path(self._path) as path:
                sock.bind(path)
            # The directory's mode 0700 keeps others out in the moment before.
            self._path.chmod(0o600)
            await self._server.start(sock)
        except BaseException:
            sock.close()
            raise

    async def stop(self) -> None:
        """Close the socket and remove it."""
        await self._server.close()
        self._path.unlink(missing_ok=True)

    async def _get_sessions(self, _request: Request) -> Answer:
        now = self._now()
        return Answer({"schema": SCHEMA, "sessions": [_as_json(view, now) for view in self._sessions()]})

    async def _get_udp(self, _request: Request) -> Answer:
        now = self._now()
        return Answer({"schema": SCHEMA, "udp": [_udp_as_json(view, now) for view in self._udp()]})

    async def _get_troubles(self, _request: Request) -> Answer:
        kind = self._datapath.kind.name.lower()
        return Answer({"schema": SCHEMA, "datapath": kind, "troubles": await self._datapath.troubles()})

    async def _post_users_changed(self, _request: Request) -> Answer:
        self._users_changed()
        return Answer({"schema": SCHEMA})


def _told(asked: str, error: Exception) -> Answer:
    if isinstance(error, RequestRefused):
        return Answer({"schema": SCHEMA, "error": f"{asked}: {error.what}"}, error.status)
    _log.error("admin_request_failed", asked=asked, exc_info=error)
    return Answer({"schema": SCHEMA, "error": "see the proxy's log"}, HTTPStatus.INTERNAL_SERVER_ERROR)


def _as_json(view: SessionView, now: float) -> dict[str, Any]:
    record = view.record
    return {
        "id": record.session.hex(),
        "user": record.user,
        "destination": str(record.destination),
        "state": record.state.value,
        "datapath": view.datapath,
        "datapath_reason": view.datapath_reason,
        "generation": record.generation,
        "bytes_up": view.counters.up,
        "bytes_down": view.counters.down,
        "packets_up": view.counters.packets_up,
        "packets_down": view.counters.packets_down,
        "dropped": view.counters.dropped,
        "idle": None if view.counters.idle_s is None else round(view.counters.idle_s, 3),
        "age": round(now - record.opened_at, 3),
        "client": str(view.client),
        "durable": view.durable,
    }


def _udp_as_json(view: UdpView, now: float) -> dict[str, Any]:
    return {
        "user": view.user,
        "mobile": view.mobile,
        "client": None if view.client is None else str(view.client),
        "port": view.port,
        "sent": view.sent,
        "received": view.received,
        "bytes_up": view.bytes_up,
        "bytes_down": view.bytes_down,
        "paths": view.paths,
        "age": round(now - view.opened_at, 3),
        "dropped": view.dropped,
    }


def lock_state(path: Path) -> int | None:
    """Take the lock that one running proxy holds on its state directory; None where another has it.

    Returns:
        A descriptor that holds the lock until it is closed.
    """
    import fcntl

    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
