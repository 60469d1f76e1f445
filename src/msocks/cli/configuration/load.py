"""From a file and the command line to the settings of a daemon."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from msocks.agent.settings import NO_POLICY, AgentLimits, AgentSettings
from msocks.cli.configuration.models import AgentTable, ConfigurationFile, ProxyTable, TransparentTable
from msocks.cli.configuration.policy_load import policy_of
from msocks.cli.configuration.policy_models import PolicyTable
from msocks.cli.configuration.problems import InvalidConfiguration, Problem, from_error, problems_of
from msocks.errors import AccessLinkError, ConfigurationError
from msocks.interception.transparent import TransparentSettings
from msocks.policy.decision import Policy
from msocks.proxy.config import ProxyConfig, ProxyLimits
from msocks.values.access_link import AccessLink

_MOST_BYTES = 1024 * 1024


class Daemon(StrEnum):
    """What a table of the file configures."""

    AGENT = "agent"
    PROXY = "proxy"
    TRANSPARENT = "transparent"


_POLICY = "policy"


@dataclass(frozen=True, slots=True)
class Checked:
    """What a file configures, found to be right.

    Attributes:
        agent: Settings of the agent.
        access_file: The file that holds its access link: the configuration itself, or the one that this names.
        proxy: Settings of the proxy.
        policy: Which link carries which flow of the agent.
        transparent: Settings of transparent mode.
        agent_control: The agent's control socket, as transparent mode is told.
    """

    agent: AgentSettings | None
    access_file: Path | None
    proxy: ProxyConfig | None
    policy: Policy | None
    transparent: TransparentSettings | None
    agent_control: str | None


def check_file(path: Path) -> Checked:
    """Validate a whole file.

    Raises:
        InvalidConfiguration: With every problem that there is.
    """
    raw = _read(path)
    checked, problems = _check(raw, path)
    if not raw:
        problems.append(
            Problem("", "the file configures nothing", "it needs a table [agent], [proxy], [policy] or [transparent]")
        )
    if problems:
        raise InvalidConfiguration(str(path), problems)
    return checked


def agent_settings(file: Path | None, overrides: Mapping[str, Any]) -> tuple[AgentSettings, Path | None]:
    """Settings of the agent: those of `file`, replaced by `overrides` (as in the file; None: not given).

    Returns:
        The settings, and the file that holds the access link.

    Raises:
        InvalidConfiguration: With every problem of the file and the overrides.
        ConfigurationError: There is no file, and an override cannot be used.
    """
    checked = _load(Daemon.AGENT, file, overrides)
    assert checked.agent is not None
    return checked.agent, checked.access_file


def proxy_config(file: Path | None, overrides: Mapping[str, Any]) -> ProxyConfig:
    """Settings of the proxy: those of `file`, replaced by `overrides` (as in the file; None: not given).

    Raises:
        InvalidConfiguration: With every problem of the file and the overrides.
        ConfigurationError: There is no file, and an override cannot be used.
    """
    checked = _load(Daemon.PROXY, file, overrides)
    assert checked.proxy is not None
    return checked.proxy


def transparent_settings(file: Path | None, overrides: Mapping[str, Any]) -> tuple[TransparentSettings, str | None]:
    """Settings of transparent mode: those of `file`, replaced by `overrides` (as in the file; None: not given).

    Returns:
        The settings, and the agent's control socket where one is given.

    Raises:
        InvalidConfiguration: With every problem of the file and the overrides.
        ConfigurationError: There is no file, and an override cannot be used.
    """
    checked = _load(Daemon.TRANSPARENT, file, overrides)
    assert checked.transparent is not None
    return checked.transparent, checked.agent_control


def access_of(path: Path) -> AccessLink:
    """The access link in a file of one line.

    Raises:
        ConfigurationError: The file cannot be read, or holds something else. The message never repeats the secret.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"the access file {path} cannot be read: {error.strerror}",
            remedy="it holds one line, the access link that `msocks user add` printed on the server",
        ) from None
    except UnicodeDecodeError:
        text = ""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) != 1:
        raise AccessLinkError(
            f"the access file {path} has {len(lines)} lines of text, not one",
            remedy="it holds one line, the access link that `msocks user add` printed on the server",
        )
    try:
        return AccessLink.parse(lines[0])
    except AccessLinkError as error:
        raise AccessLinkError(f"the access file {path}: {error.what}", remedy=error.remedy) from None


def is_readable_by_others(path: Path) -> bool:
    """Whether users besides its owner may read a file, the service manager's credentials excepted."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if credentials and path.is_relative_to(credentials):
        return False  # systemd gives them a mode for the group, and a directory that keeps everybody else out
    try:
        return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
    except OSError:
        return False


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", remedy="check the path") from None
    if len(content) > _MOST_BYTES:
        raise ConfigurationError(f"{path} has more than {_MOST_BYTES} bytes", remedy="check the path")
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        problem = Problem("", f"byte {error.start} is not UTF-8", "save the file as UTF-8")
    except tomllib.TOMLDecodeError as error:
        problem = Problem("", f"this is not TOML: {error}", "strings stand in quotes, lists in [ ]; see toml.io")
    raise InvalidConfiguration(str(path), [problem])


def _load(daemon: Daemon, file: Path | None, overrides: Mapping[str, Any]) -> Checked:
    raw = _read(file) if file is not None else {}
    # A policy may have a file of its own: the agent's settings are then those of the command line.
    alone = daemon is Daemon.AGENT and _POLICY in raw
    if file is not None and daemon not in raw and not alone:
        missing = Problem("", f"there is no table [{daemon}]", f"give the settings of the {daemon} in it")
        raise InvalidConfiguration(str(file), [missing])
    table = raw.setdefault(daemon, {})
    if isinstance(table, dict):
        given = {key: value for key, value in overrides.items() if value is not None}
        if "access_file" in given:
            table.pop("access_link", None)
        table.update(given)
    checked, problems = _check(raw, file)
    if problems and file is None:
        # Options were checked one by one; what is left lies in what they name.
        raise ConfigurationError(problems[0].cause, remedy=problems[0].suggestion)
    if problems:
        raise InvalidConfiguration(str(file), problems)
    return checked


def _check(raw: dict[str, Any], file: Path | None) -> tuple[Checked, list[Problem]]:
    """Everything that is right, and everything that is wrong. Relative paths count from the file's directory."""
    base = file.parent if file is not None else Path()
    problems: list[Problem] = []
    tables: ConfigurationFile | None = None
    try:
        tables = ConfigurationFile.model_validate(raw)
    except ValidationError as error:
        problems += problems_of(error, ConfigurationFile)
    agent_raw = raw.get(Daemon.AGENT)
    access: tuple[AccessLink, Path | None] | None = None
    if isinstance(agent_raw, dict):
        # Looked for whatever else is wrong: all problems are told at once.
        access = _access(agent_raw, file, base, problems)
    agent = access_file = proxy = None
    policy = _policy(raw, tables, problems)
    if tables is not None and tables.agent is not None and access is not None:
        access_file = access[1]
        agent = _agent(tables.agent, access[0], base, policy or NO_POLICY)
    if tables is not None and tables.proxy is not None:
        proxy = _proxy(tables.proxy, base)
    transparent = control = None
    if tables is not None and tables.transparent is not None:
        transparent = _transparent(tables.transparent)
        control = None if tables.transparent.control is None else str(base / tables.transparent.control)
        if not transparent.host and not transparent.router:
            problems.append(
                Problem("transparent", "neither host nor router is given", 'write host = true, or router = ["lan0"]')
            )
    return Checked(agent, access_file, proxy, policy, transparent, control), problems


def _policy(raw: Mapping[str, Any], tables: ConfigurationFile | None, problems: list[Problem]) -> Policy | None:
    """The policy, as far as its own table is right, whatever the others are."""
    if _POLICY not in raw:
        return None
    try:
        table = PolicyTable.model_validate(raw[_POLICY]) if tables is None else tables.policy
    except ValidationError:
        return None  # the whole file's model says so already
    assert table is not None
    agent = raw.get(Daemon.AGENT)
    links = agent.get("links") if isinstance(agent, dict) else None
    known = [each for each in links if isinstance(each, str)] if isinstance(links, list) else None
    return policy_of(table, known or None, problems)


def _access(
    table: Mapping[str, Any], file: Path | None, base: Path, problems: list[Problem]
) -> tuple[AccessLink, Path | None] | None:
    """The access link of ``[agent]`` and the file that holds it."""
    match table:
        case {"access_file": _, "access_link": _}:
            problems.append(Problem("agent", "both access_file and access_link are given", "leave one of them out"))
        case {"access_file": str(name)} if name:
            path = base / Path(name).expanduser()
            try:
                return access_of(path), path
            except ConfigurationError as error:
                problems.append(from_error("agent.access_file", error))
        case {"access_link": str(text)}:
            try:
                return AccessLink.parse(text), file
            except AccessLinkError:
                pass  # the model says so already
        case {"access_file": _} | {"access_link": _}:
            pass  # the same
        case _:
            problems.append(
                Problem("agent", "there is no access to a proxy", 'for instance: access_file = "/etc/msocks/access"')
            )
    return None


def _agent(table: AgentTable, access: AccessLink, base: Path, policy: Policy) -> AgentSettings:
    return AgentSettings(
        access=access,
        listen=tuple(table.listen),
        links=None if table.links is None else tuple(table.links),
        control=None if table.control is None else str(base / table.control),
        allow_remote=table.allow_remote,
        spare_legs=table.spare_legs,
        limits=AgentLimits(**table.limits.model_dump()),
        policy=policy,
        state=None if table.state is None else str(base / table.state),
    )


def _transparent(table: TransparentTable) -> TransparentSettings:
    return TransparentSettings(
        host=table.host,
        router=tuple(table.router),
        exclude=tuple(table.exclude),
        private=table.private,
        on_outage=table.on_outage,
        tag=table.tag,
    )


def _proxy(table: ProxyTable, base: Path) -> ProxyConfig:
    return ProxyConfig(
        listen=tuple(table.listen),
        state=base / table.state,
        allow=tuple(table.allow),
        deny=tuple(table.deny),
        open=table.open,
        datapath=table.datapath,
        splice_ports=table.splice_ports,
        store=table.store,
        half_closed_s=table.half_closed_s,
        detach_grace_s=table.detach_grace_s,
        handshake_timeout_s=table.handshake_timeout_s,
        connect_timeout_s=table.connect_timeout_s,
        channel_idle_s=table.channel_idle_s,
        udp_idle_s=table.udp_idle_s,
        udp_address=tuple(table.udp_address),
        bind=table.bind,
        bind_timeout_s=table.bind_timeout_s,
        publish={user: tuple(spans) for user, spans in table.publish.items()},
        inbound_address=tuple(table.inbound_address),
        take_timeout_s=table.take_timeout_s,
        stop_grace_s=table.stop_grace_s,
        tombstone_s=table.tombstone_s,
        limits=ProxyLimits(**table.limits.model_dump()),
    )
