"""What the operator can ask of a running proxy: HTTP on a Unix socket in the state directory, for its owner alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from aiohttp import web

from msocks.datapath.interface import Datapath
from msocks.proxy.session_host import SessionView
from msocks.proxy.udp_host import UdpView
from msocks.store.running_proxy import short_socket_path

SCHEMA = 1


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
        application = web.Application()
        application.router.add_get("/sessions", self._get_sessions)
        application.router.add_get("/udp", self._get_udp)
        application.router.add_get("/troubles", self._get_troubles)
        application.router.add_post("/users-changed", self._post_users_changed)
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=1)

    async def start(self) -> None:
        """Listen. A socket that a dead proxy left behind is replaced; the caller makes sure that none lives."""
        await self._runner.setup()
        self._path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with short_socket_path(self._path) as path:
                sock.bind(path)
            # The directory's mode 0700 keeps others out in the moment before.
            self._path.chmod(0o600)
            await web.SockSite(self._runner, sock).start()
        except BaseException:
            sock.close()
            raise

    async def stop(self) -> None:
        """Close the socket and remove it."""
        await self._runner.cleanup()
        self._path.unlink(missing_ok=True)

    async def _get_sessions(self, _request: web.Request) -> web.Response:
        now = self._now()
        return web.json_response({"schema": SCHEMA, "sessions": [_as_json(view, now) for view in self._sessions()]})

    async def _get_udp(self, _request: web.Request) -> web.Response:
        now = self._now()
        return web.json_response({"schema": SCHEMA, "udp": [_udp_as_json(view, now) for view in self._udp()]})

    async def _get_troubles(self, _request: web.Request) -> web.Response:
        kind = self._datapath.kind.name.lower()
        return web.json_response({"schema": SCHEMA, "datapath": kind, "troubles": await self._datapath.troubles()})

    async def _post_users_changed(self, _request: web.Request) -> web.Response:
        self._users_changed()
        return web.json_response({"schema": SCHEMA})


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
