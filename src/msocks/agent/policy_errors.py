"""What policy has to say to programs and to people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msocks.errors import ConfigurationError, MsocksError


def _by(rule: str) -> str:
    return f"the policy's rule {rule!r}" if rule else "the policy"


class NoLinkAllowed(MsocksError, PermissionError):
    """A program's connection may use none of the links that there are.

    Attributes:
        barred: Whether links are there that could be used, and may not.
    """

    def __init__(self, destination: str, rule: str, *, barred: bool) -> None:
        reason = "allows none of the links that can be used" if barred else "waits for no link, and there is none"
        super().__init__(
            f"{destination}: {_by(rule)} {reason}", remedy="`msocks links` shows the links; change the rule, or wait"
        )
        self.barred = barred


class LossEndsFlow(MsocksError, ConnectionResetError):
    """A flow's link was lost, and its rule has it end with that."""

    def __init__(self, link: str, rule: str) -> None:
        super().__init__(
            f"the link {link} was lost, and {_by(rule)} says on_loss = reset for this flow",
            remedy="open a new connection; with on_loss = move it would have gone on over another link",
        )


class MoveForbidden(MsocksError, PermissionError):
    """A flow was to be moved to a link that its rule bars."""

    def __init__(self, link: str, rule: str, reason: str) -> None:
        super().__init__(
            f"{_by(rule)} does not allow {link} for this flow: {reason}",
            remedy=f"`msocks pin FLOW --to {link}` goes before every rule",
        )


@dataclass(frozen=True, slots=True)
class PolicyProblem:
    """One thing that is wrong with a configuration: its key, the cause, and what to do."""

    key: str
    cause: str
    suggestion: str


class PolicyRefused(ConfigurationError):
    """A new configuration cannot be used; the old policy stays.

    Attributes:
        problems: Every one, where the file could be read.
    """

    def __init__(self, what: str, problems: Sequence[PolicyProblem] = (), *, remedy: str = "") -> None:
        super().__init__(what, remedy=remedy or "the policy stays as it was; correct the file and reload")
        self.problems = tuple(problems)
