"""The ways in which `msocks run` brings a program's connections to the agent, the best one first."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from msocks.agent.control_path import CONTROL_VARIABLE, RUN_SUFFIX, find_control_path
from msocks.cli.agent_client import AgentClient
from msocks.errors import ConfigurationError
from msocks.interception import proxy_settings
from msocks.interception.identity import find_identity
from msocks.interception.launch import CannotStart, become, open_descriptors, start_keeper
from msocks.interception.refusal import CannotIntercept
from msocks.values.endpoint import Endpoint
from msocks.values.origin import Wish

ONLY_BY_HOOKS = "--link, --prefer, --on-loss, --tag, --exclude, --dns and --no-udp"


@dataclass(frozen=True, slots=True)
class CgroupSettings:
    """What only the kernel's hooks can do."""

    wish: Wish
    tag: str | None
    excluded: tuple[IPv4Network | IPv6Network, ...]
    names: bool = False
    no_udp: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it was asked for."""
        return self == CgroupSettings(Wish(), None, ())


class ProgramStart:
    """One program that is to be started."""

    def __init__(self, command: Sequence[str], control: str | None, user: str | None, *, verbose: bool) -> None:
        """
        Args:
            command: The program and its arguments.
            control: The agent's control socket, where it was given.
            user: Who the program shall run as, where that was given.
            verbose: Tell the way also where it is the usual one.
        """
        self._inherited = open_descriptors()
        self._command = command
        self._verbose = verbose
        self._identity = find_identity(user, os.environ)
        self._environment = dict(os.environ)
        if self._identity is not None:
            self._environment = self._identity.environment(os.environ)
        self._control = self._find_control(control)

    def run(self, via: str, settings: CgroupSettings) -> int:
        """Become the program; returns the exit status where it cannot be started.

        Args:
            via: ``auto``, ``cgroup``, ``proxychains`` or ``environment``.
            settings: What the hooks are told; only for ``auto`` and ``cgroup``.

        Raises:
            AgentUnavailable: No agent runs, or it cannot be asked.
            CannotIntercept: The way that was asked for cannot be had.
            ConfigurationError: The agent does not take the settings, or no way that knows them can be had.
        """
        try:
            lack = ""
            if via in ("auto", "cgroup"):
                try:
                    self._by_cgroup(settings)
                except CannotIntercept as error:
                    if via == "cgroup":
                        raise
                    if not settings.is_empty:
                        raise ConfigurationError(
                            f"{ONLY_BY_HOOKS} need the kernel's hooks: {error.what}",
                            remedy=error.remedy,
                        ) from None
                    lack = error.what
            agent = proxy_settings.reachable(Endpoint.parse(AgentClient(self._control).status()["listen"][0]))
            if via == "auto" and proxy_settings.is_static(self._command[0]):
                lack = "; ".join(filter(None, (lack, f"{self._command[0]} is linked statically")))
            elif via in ("auto", "proxychains"):
                if (wrapper := proxy_settings.proxychains()) is not None:
                    self._by_proxychains(wrapper, agent, lack)
                elif via == "proxychains":
                    raise CannotIntercept("proxychains is not installed", remedy="Debian: apt-get install proxychains4")
            self._by_environment(agent, lack)
        except CannotStart as error:
            from msocks.cli.program import show_error

            show_error(error)
            return error.status
        raise AssertionError("this process is the program now")

    def _by_cgroup(self, settings: CgroupSettings) -> None:
        from msocks.interception.agent_link import AgentLink
        from msocks.interception.keeper import Keeper
        from msocks.interception.messages import Run
        from msocks.interception.name_services import hide_name_services

        link = AgentLink(f"{self._control}{RUN_SUFFIX}", Run(settings.tag, settings.wish))
        keeper = Keeper(link, settings.excluded, names=settings.names, no_udp=settings.no_udp)
        if settings.names:
            hide_name_services()
        start_keeper(keeper, self._inherited)
        if self._verbose:
            self._say("by the kernel's connect hooks (cgroup)")
        become(self._command, self._environment, self._identity)

    def _by_proxychains(self, wrapper: str, agent: Endpoint, lack: str) -> None:
        self._say(f"by {wrapper}, which does for dynamically linked programs", lack)
        file = proxy_settings.proxychains_configuration(agent, Path(self._control).parent)
        become([wrapper, "-q", "-f", str(file), *self._command], self._environment, self._identity)

    def _by_environment(self, agent: Endpoint, lack: str) -> None:
        self._say("by environment variables, which does for programs that read them", lack)
        become(self._command, self._environment | proxy_settings.proxy_variables(agent), self._identity)

    def _say(self, way: str, lack: str = "") -> None:
        """Which way was taken, and why not the best one."""
        print(f"msocks run: {way}{f' ({lack})' if lack else ''}", file=sys.stderr, flush=True)

    def _find_control(self, given: str | None) -> str:
        """Under sudo the agent is the calling user's, if there is one; sudo takes the variables away that name it."""
        if given is None and CONTROL_VARIABLE not in os.environ and self._identity is not None:
            for place in (
                self._identity.runtime_directory / "msocks/agent.sock",
                Path(self._identity.home, ".local/state/msocks/agent.sock"),
            ):
                if place.exists():
                    return str(place)
        return find_control_path(given)
