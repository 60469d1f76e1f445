"""How a rule names links: by name, by glob, by kind, or by a quantity in which they differ."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import translate
from functools import cached_property

from msocks.errors import ConfigurationError
from msocks.values.link import LinkKind

_KIND = "kind:"
_WILDCARDS = re.compile(r"[*?\[]")
_NAME = re.compile(r"[^\s/:]{1,15}")


class Quantity(StrEnum):
    """A quantity by which links are put in order."""

    LOWEST_RTT = "lowest:rtt"
    HIGHEST_RATE = "highest:rate"
    LOWEST_COST = "lowest:cost"
    WIDEST_COVERAGE = "widest:coverage"


@dataclass(frozen=True)
class Selector:
    """A set of links.

    Attributes:
        text: As it is written: an interface's name, a glob of names, or ``kind:`` and a kind.
        kind: The kind, where the set is one.
    """

    text: str
    kind: LinkKind | None = None

    @cached_property
    def _glob(self) -> re.Pattern[str]:
        return re.compile(translate(self.text))

    @cached_property
    def _is_glob(self) -> bool:
        return self.kind is None and is_glob(self.text)

    @property
    def name(self) -> str | None:
        """The one interface that is meant; None for a glob and for a kind."""
        return None if self.kind is not None or self._is_glob else self.text

    def matches(self, name: str, kind: LinkKind) -> bool:
        """Whether a link is in the set."""
        if self.kind is not None:
            return kind is self.kind
        return name == self.text or (self._is_glob and self._glob.match(name) is not None)


Term = Selector | Quantity


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports from `first` to `last`, both included, 1 to 65535."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last <= 65535:
            raise ConfigurationError(
                f"{self} is no range of ports", remedy='a port is 1 to 65535; write 443 or "8000-8999"'
            )

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def is_glob(text: str) -> bool:
    """Whether a text has a wildcard of fnmatch(3)."""
    return _WILDCARDS.search(text) is not None


def parse_selector(text: str) -> Selector:
    """Read ``wlan0``, ``wlan*`` or ``kind:wifi``.

    Raises:
        ConfigurationError: It is none of these.
    """
    if text.startswith(_KIND):
        try:
            return Selector(text, LinkKind(text.removeprefix(_KIND)))
        except ValueError:
            kinds = ", ".join(f"kind:{kind}" for kind in LinkKind)
            raise ConfigurationError(f"there is no {text!r}", remedy=f"known are {kinds}") from None
    if _NAME.fullmatch(text) is None:
        raise ConfigurationError(
            f"{text!r} names no link",
            remedy='write an interface\'s name ("wlan0"), a glob ("wlan*") or a kind ("kind:wifi")',
        )
    return Selector(text)


def parse_term(text: str) -> Term:
    """Read a preference: a selector, or a quantity such as ``lowest:rtt``.

    Raises:
        ConfigurationError: It is neither.
    """
    if ":" not in text or text.startswith(_KIND):
        return parse_selector(text)
    try:
        return Quantity(text)
    except ValueError:
        known = ", ".join([*Quantity, *(f"kind:{kind}" for kind in LinkKind)])
        raise ConfigurationError(f"there is no preference {text!r}", remedy=f"known are names and {known}") from None
