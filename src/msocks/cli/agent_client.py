"""Speaks to the agent over its control socket. Blocking."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Generator
from typing import Any
from urllib.parse import quote

from msocks.agent.control_path import find_control_path
from msocks.errors import AgentUnavailable, MsocksError

_TIMEOUT_S = 10.0
# The agent itself gives a move 40 s.
_MOVE_TIMEOUT_S = 60.0


class AgentRefused(MsocksError):
    """The agent could not do what was asked; the text is its own."""


class ConfigurationRefused(AgentRefused):
    """The agent could not use its configuration; `problems` has everything that is wrong."""

    def __init__(self, what: str, remedy: str, problems: list[dict[str, str]]) -> None:
        super().__init__(what, remedy=remedy)
        self.problems = problems


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("agent", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class AgentClient:
    """One agent, found at `control`, else at ``$MSOCKS_CONTROL``, else in the default place.

    Raises:
        AgentUnavailable: From every method: none runs there, it does not answer, or it is of another version.
        AgentRefused: From every method: the agent said no.
    """

    def __init__(self, control: str | None) -> None:
        self.path = find_control_path(control)

    def status(self) -> dict[str, Any]:
        """How the agent is doing."""
        return self._ask("GET", "/v1/status")

    def flows(self) -> list[dict[str, Any]]:
        """All flows, the ended ones of the last minute included."""
        return self._list("flows")

    def links(self) -> list[dict[str, Any]]:
        """All links in order of preference."""
        return self._list("links")

    def move(self, flow: str, link: str) -> list[dict[str, Any]]:
        """Move a flow (its id, or ``all``); returns what became of each."""
        body = json.dumps({"to": link})
        answer = self._ask("POST", f"/v1/flows/{quote(flow, safe='')}/move", body, _MOVE_TIMEOUT_S)
        return self._member(answer, "moves")

    def why(self, flow: str) -> dict[str, Any]:
        """What decides about a flow (its id), and what else was considered."""
        return self._ask("GET", f"/v1/flows/{quote(flow, safe='')}/why")

    def pin(self, flow: str, link: str) -> dict[str, Any]:
        """Pin a flow (its id, or ``all``) to a link."""
        return self._ask("POST", f"/v1/flows/{quote(flow, safe='')}/pin", json.dumps({"to": link}))

    def unpin(self, flow: str) -> dict[str, Any]:
        """Let the policy decide about a flow (its id, or ``all``) again."""
        return self._ask("POST", f"/v1/flows/{quote(flow, safe='')}/unpin")

    def reload(self) -> dict[str, Any]:
        """Have the policy read anew. Raises ConfigurationRefused as well."""
        return self._ask("POST", "/v1/reload")

    def events(self) -> Generator[dict[str, Any], None, None]:
        """What happens to the flows, until the agent stops."""
        connection = _UnixConnection(self.path, _TIMEOUT_S)
        try:
            response = self._request(connection, "GET", "/v1/events")
            connection.sock.settimeout(None)  # nothing may happen for hours
            while line := response.readline():
                yield json.loads(line)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._unavailable(error) from None
        finally:
            connection.close()

    def _list(self, name: str) -> list[dict[str, Any]]:
        return self._member(self._ask("GET", f"/v1/{name}"), name)

    def _member(self, answer: dict[str, Any], name: str) -> list[dict[str, Any]]:
        found = answer.get(name)
        if not isinstance(found, list):
            raise self._foreign()
        return found

    def _ask(self, method: str, path: str, body: str | None = None, timeout_s: float = _TIMEOUT_S) -> dict[str, Any]:
        connection = _UnixConnection(self.path, timeout_s)
        try:
            answer = json.loads(self._request(connection, method, path, body).read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._unavailable(error) from None
        finally:
            connection.close()
        if not isinstance(answer, dict):
            raise self._foreign()
        return answer

    def _request(
        self, connection: _UnixConnection, method: str, path: str, body: str | None = None
    ) -> http.client.HTTPResponse:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise self._refusal(response)
        return response

    def _refusal(self, response: http.client.HTTPResponse) -> MsocksError:
        try:
            answer = json.loads(response.read())
            what, remedy = str(answer["error"]["what"]), str(answer["error"]["remedy"])
            if response.status == http.HTTPStatus.UNPROCESSABLE_ENTITY:
                return ConfigurationRefused(what, remedy, list(answer["problems"]))
            return AgentRefused(what, remedy=remedy)
        except (ValueError, KeyError, TypeError):
            return self._foreign()

    def _foreign(self) -> AgentUnavailable:
        return AgentUnavailable(
            f"what answers at {self.path} is not an agent of this version", remedy="restart the agent"
        )

    def _unavailable(self, error: Exception) -> AgentUnavailable:
        match error:
            case TimeoutError():
                return AgentUnavailable(f"the agent at {self.path} does not answer", remedy="see its log")
            case PermissionError():
                return AgentUnavailable(
                    f"the agent at {self.path} belongs to another user", remedy="run the command as that user, or root"
                )
            case FileNotFoundError() | ConnectionRefusedError():
                return AgentUnavailable(
                    f"no agent runs at {self.path}",
                    remedy="start it: msocks agent --access-file FILE; or say where it is: --control PATH",
                )
        return AgentUnavailable(f"the agent at {self.path} cannot be asked: {error}", remedy="see its log")
