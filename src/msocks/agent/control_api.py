"""The control API: JSON over HTTP on a Unix socket. `docs/reference/control-api.md` is its manual."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from http import HTTPStatus
from pathlib import Path
from typing import Any

import structlog

from msocks.agent.any_flow import AnyFlow
from msocks.agent.control_json import SCHEMA, MoveOutcome, error_as_json, event_as_json, flow_as_json, moves_as_json
from msocks.agent.control_socket import bind_control_socket
from msocks.agent.event_feed import EventFeed
from msocks.agent.flow_table import AmbiguousFlow, FlowHasEnded, FlowTable, NoSuchFlow
from msocks.agent.policy_control import PolicyControl, problems_as_json
from msocks.agent.policy_errors import MoveForbidden, PolicyRefused
from msocks.client.node import MobileNode
from msocks.errors import ConfigurationError, LinkUnavailable, MsocksError, SessionEnded
from msocks.session.mobile_effects import SessionState
from msocks.transport.local_http import Answer, LocalHttpServer, Request, RequestRefused, Route, Stream

# A CONNECT under way may take 35 s, and a move of such a flow waits for it.
MOVE_TIMEOUT_S = 40.0

_log = structlog.get_logger("msocks.agent.control_api")


class MoveTimedOut(MsocksError, TimeoutError):
    """A move neither succeeded nor failed in time."""

    def __init__(self, link: str) -> None:
        super().__init__(
            f"the flow does not run on {link} after {MOVE_TIMEOUT_S:g} s",
            remedy="it moves when it can; `msocks flows` shows where it is",
        )


class BadRequest(ConfigurationError):
    """A request to the control API cannot be understood."""


def status_of(error: MsocksError) -> HTTPStatus:
    """The HTTP status of an answer that tells `error`."""
    match error:
        case RequestRefused():
            return error.status
        case NoSuchFlow():
            return HTTPStatus.NOT_FOUND
        case BadRequest():
            return HTTPStatus.BAD_REQUEST
        case FlowHasEnded() | SessionEnded():
            return HTTPStatus.GONE
        case MoveTimedOut():
            return HTTPStatus.GATEWAY_TIMEOUT
        case PolicyRefused():
            return HTTPStatus.UNPROCESSABLE_ENTITY
        case AmbiguousFlow() | LinkUnavailable() | MoveForbidden():
            return HTTPStatus.CONFLICT
    return HTTPStatus.BAD_GATEWAY


class ControlApi:
    """Serves one agent."""

    def __init__(
        self,
        node: MobileNode,
        flows: FlowTable,
        events: EventFeed,
        status: Callable[[], dict[str, Any]],
        policy: PolicyControl,
    ) -> None:
        """
        Args:
            node: Has the links.
            flows: The flow table.
            events: What happens to the flows.
            status: Gives what ``/v1/status`` answers.
            policy: What can be asked of the policy.
        """
        self._node = node
        self._flows = flows
        self._feed = events
        self._status = status
        self._policy = policy
        self._path: Path | None = None
        self._server = LocalHttpServer(
            [
                Route("GET", "/v1/status", self._get_status),
                Route("GET", "/v1/flows", self._get_flows),
                Route("GET", "/v1/links", self._get_links),
                Route("POST", "/v1/flows/{id}/move", self._move),
                Route("GET", "/v1/events", self._get_events),
                Route("GET", "/v1/flows/{id}/why", self._why),
                Route("POST", "/v1/flows/{id}/pin", self._pin),
                Route("POST", "/v1/flows/{id}/unpin", self._unpin),
                Route("POST", "/v1/reload", self._reload),
            ],
            _told,
        )

    async def start(self, path: Path) -> None:
        """Listen at `path`.

        Raises:
            ConfigurationError: See `bind_control_socket`.
        """
        listener = bind_control_socket(path)
        self._path = path
        await self._server.start(listener)

    async def close(self) -> None:
        """End what is being served, and remove the socket."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None
        await self._server.close()

    async def _get_status(self, _request: Request) -> Answer:
        return _answer(self._status())

    async def _get_flows(self, _request: Request) -> Answer:
        printed = self._flows.printed()
        return _answer({"flows": [flow_as_json(view, printed[view.session]) for view in self._flows.views()]})

    async def _get_links(self, _request: Request) -> Answer:
        per_link = self._flows.per_link()
        by_policy = self._policy.links()
        links = [
            {
                "name": name,
                "state": link.state.value,
                "rtt_ms": self._node.rtt_ms(name),
                "loss_percent": None if path is None else path.loss_percent,
                "flows": per_link[name],
                "problem": error_as_json(None if path is None else path.captive),
                "middlebox": self._node.is_split(name),
            }
            | by_policy[name]
            for name, link in self._node.links.items()
            for path in [self._node.path(name)]
        ]
        return _answer({"links": links})

    async def _move(self, request: Request) -> Answer:
        link = _wanted_link(request)
        wanted = request.names["id"]
        flows = self._wanted_flows(request)
        if link not in self._node.links:
            raise LinkUnavailable.unknown(link)
        outcomes = await asyncio.gather(*(self._try_move(flow, link) for flow in flows))
        if wanted != "all" and outcomes[0].error is not None:
            raise outcomes[0].error
        return _answer(moves_as_json(link, outcomes, self._flows.printed()))

    async def _try_move(self, flow: AnyFlow, link: str) -> MoveOutcome:
        before = flow.link
        try:
            async with asyncio.timeout(MOVE_TIMEOUT_S):
                await self._policy.move(flow, link)
        except MsocksError as error:
            return MoveOutcome(flow, before, error)
        except TimeoutError:
            return MoveOutcome(flow, before, MoveTimedOut(link))
        return MoveOutcome(flow, before, None)

    def _wanted_flows(self, request: Request) -> list[AnyFlow]:
        wanted = request.names["id"]
        if wanted == "all":
            return [flow for flow in self._flows if flow.state is not SessionState.ENDED]
        return [self._flows.find(wanted)]

    async def _why(self, request: Request) -> Answer:
        return _answer(self._policy.why(self._flows.find(request.names["id"])))

    async def _pin(self, request: Request) -> Answer:
        link = _wanted_link(request)
        return _answer(self._policy.pin(self._wanted_flows(request), link))

    async def _unpin(self, request: Request) -> Answer:
        return _answer(self._policy.unpin(self._wanted_flows(request)))

    async def _reload(self, _request: Request) -> Answer:
        return _answer(await self._policy.reload())

    async def _get_events(self, _request: Request) -> Stream:
        return Stream(self._events_as_json())

    async def _events_as_json(self) -> AsyncGenerator[dict[str, Any], None]:
        async with aclosing(self._feed.listen()) as events:
            async for event in events:
                yield event_as_json(event)


def _wanted_link(request: Request) -> str:
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError):
        body = None
    link = body.get("to") if isinstance(body, dict) else None
    if not isinstance(link, str) or not link:
        raise BadRequest("the request's body does not name a link", remedy='send JSON such as {"to": "wlan0"}')
    return link


def _answer(values: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> Answer:
    return Answer({"schema": SCHEMA} | values, status)


def _told(asked: str, error: Exception) -> Answer:
    match error:
        case RequestRefused():
            what, remedy = f"{asked}: {error.what}", "docs/reference/control-api.md lists what there is"
            told = MsocksError(what, remedy=remedy)
        case MsocksError():
            told = error
        case _:
            _log.error("control_request_failed", asked=asked, exc_info=error)
            told = MsocksError("the agent met a fault of its own", remedy="its log says more")
            return _answer({"error": error_as_json(told)}, HTTPStatus.INTERNAL_SERVER_ERROR)
    problems = problems_as_json(error.problems) if isinstance(error, PolicyRefused) else {}
    return _answer({"error": error_as_json(told)} | problems, status_of(error))
