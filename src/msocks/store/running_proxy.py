"""Speaks to the proxy that runs on a state directory, if one does: HTTP over its Unix socket. Blocking."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msocks.errors import ConfigurationError, MsocksError
from msocks.store.state_directory import StateDirectory

_TIMEOUT_S = 5.0


class ProxyNotRunning(MsocksError, ConnectionError):
    """No proxy runs on this state directory."""


@contextlib.contextmanager
def short_socket_path(path: Path) -> Iterator[str]:
    """A path to a Unix socket that fits into ``sun_path`` (108 bytes) however deep the directory lies."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(_TIMEOUT_S)
            with short_socket_path(self._path) as path:
                sock.connect(path)
        except BaseException:
            sock.close()
            raise
        self.sock = sock


def request(state: StateDirectory, method: str, path: str) -> dict[str, Any]:
    """Ask the running proxy; returns the JSON object that it answers.

    Raises:
        ProxyNotRunning: Nobody listens on the socket.
        ConfigurationError: The answer is not that of a proxy of this version.
    """
    connection = _UnixConnection(state.admin_socket)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read()
    except (FileNotFoundError, ConnectionError) as error:
        raise ProxyNotRunning(
            f"no proxy runs on the state directory {state.path} ({error.strerror or error})",
            remedy="start it: msocks proxy --state ...",
        ) from None
    except TimeoutError:
        raise ProxyNotRunning(
            f"the proxy on the state directory {state.path} did not answer within {_TIMEOUT_S:.0f} s",
            remedy="see its log",
        ) from None
    finally:
        connection.close()
    answer = json.loads(body) if response.status == http.HTTPStatus.OK else None
    if not isinstance(answer, dict):
        raise ConfigurationError(
            f"the proxy answered {response.status} to {method} {path}",
            remedy="the running proxy may be of another version; restart it",
        )
    return answer


def tell_users_changed(state: StateDirectory) -> bool:
    """Tell a running proxy that users were added or removed; False where none runs or it does not answer.

    It would notice by itself within seconds; told, it has acted when this returns.
    """
    try:
        request(state, "POST", "/users-changed")
    except (ProxyNotRunning, ConfigurationError):
        return False
    return True


def troubles(state: Path) -> tuple[str, dict[str, dict[str, int]]]:
    """The datapath of the running proxy, and what it has lost or refused, as ``GET /troubles`` gives it.

    Raises as `sessions` does.
    """
    answer = request(StateDirectory.existing(state), "GET", "/troubles")
    kind, found = answer.get("datapath"), answer.get("troubles")
    if not isinstance(kind, str) or not isinstance(found, dict):
        raise ConfigurationError("the proxy's answer holds no counts", remedy="restart the proxy with this version")
    return kind, found


def sessions(state: Path) -> list[dict[str, Any]]:
    """The sessions of the running proxy, as ``GET /sessions`` gives them.

    Raises:
        ProxyNotRunning: None runs.
        ConfigurationError: `state` is not a state directory, or the answer is not that of a proxy of this version.
    """
    answer = request(StateDirectory.existing(state), "GET", "/sessions")
    found = answer.get("sessions")
    if not isinstance(found, list):
        raise ConfigurationError("the proxy's answer holds no sessions", remedy="restart the proxy with this version")
    return found


def udp_associations(state: Path) -> list[dict[str, Any]]:
    """The UDP associations of the running proxy, as ``GET /udp`` gives them.

    Raises as `sessions` does.
    """
    found = request(StateDirectory.existing(state), "GET", "/udp").get("udp")
    if not isinstance(found, list):
        raise ConfigurationError("the proxy's answer holds no list", remedy="restart the proxy with this version")
    return found
