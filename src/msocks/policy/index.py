"""Finds the rules that fit a value without asking each of them.

A set of rules is an integer: bit *n* stands for the rule *n*, so that the first rule of an intersection is its lowest
bit. Exact texts, `prefix*`, `*suffix`, networks and ports are looked up; only other globs are tried, many in one
regular expression, and what they gave is remembered.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from fnmatch import translate
from ipaddress import IPv4Network, IPv6Network

from msocks.policy.terms import PortRange, is_glob
from msocks.values.endpoint import Address

_REMEMBERED = 4096
_TRIED_TOGETHER = 50


class _Affixes:
    """Rules by a fixed text at one end of the value."""

    def __init__(self, *, at_end: bool) -> None:
        self._at_end = at_end
        self._by_length: dict[int, dict[str, int]] = {}

    def add(self, text: str, bit: int) -> None:
        found = self._by_length.setdefault(len(text), {})
        found[text] = found.get(text, 0) | bit

    def mask(self, value: str) -> int:
        mask = 0
        size = len(value)
        for length, found in self._by_length.items():
            if length <= size:
                mask |= found.get(value[size - length :] if self._at_end else value[:length], 0)
        return mask


class TextIndex:
    """Rules by globs of a text. A rule without any fits whatever the text is, also where there is none."""

    def __init__(self, patterns: Sequence[Iterable[str]]) -> None:
        """`patterns` has the globs of each rule."""
        self._unconstrained = 0
        self._exact: dict[str, int] = {}
        self._prefixes = _Affixes(at_end=False)
        self._suffixes = _Affixes(at_end=True)
        self._globs: list[tuple[re.Pattern[str], int]] = []
        self._any_of: list[re.Pattern[str]] = []  # of so many globs each: most values fit none of them
        self._remembered: dict[str, int] = {}
        for number, globs in enumerate(patterns):
            bit = 1 << number
            globs = tuple(globs)
            if not globs:
                self._unconstrained |= bit
            for glob in globs:
                self._add(glob, bit)
        for start in range(0, len(self._globs), _TRIED_TOGETHER):
            together = (pattern.pattern for pattern, _ in self._globs[start : start + _TRIED_TOGETHER])
            self._any_of.append(re.compile("|".join(together)))

    def _add(self, glob: str, bit: int) -> None:
        if not is_glob(glob):
            self._exact[glob] = self._exact.get(glob, 0) | bit
        elif glob.endswith("*") and not is_glob(glob[:-1]):
            self._prefixes.add(glob[:-1], bit)
        elif glob.startswith("*") and not is_glob(glob[1:]):
            self._suffixes.add(glob[1:], bit)
        else:
            self._globs.append((re.compile(translate(glob)), bit))

    @property
    def constrained(self) -> int:
        """Those of the rules, as bits to take away, that do not ask for the text."""
        return ~self._unconstrained

    def mask(self, value: str | None) -> int:
        """The rules that `value` fits."""
        mask = self._unconstrained
        if value is None:
            return mask
        mask |= self._exact.get(value, 0) | self._prefixes.mask(value) | self._suffixes.mask(value)
        return mask | self._by_globs(value) if self._globs else mask

    def _by_globs(self, value: str) -> int:
        mask = self._remembered.get(value)
        if mask is None:
            mask = 0
            for number, any_of in enumerate(self._any_of):
                if any_of.match(value):
                    start = number * _TRIED_TOGETHER
                    for pattern, bit in self._globs[start : start + _TRIED_TOGETHER]:
                        if not mask & bit and pattern.match(value):
                            mask |= bit
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            self._remembered[value] = mask
        return mask


class NetworkIndex:
    """Rules by the networks that hold an address."""

    def __init__(self, networks: Sequence[Iterable[IPv4Network | IPv6Network]]) -> None:
        """`networks` has those of each rule. Unlike with texts, a rule without any fits no address."""
        self._by_shift: dict[int, dict[int, dict[int, int]]] = {4: {}, 6: {}}
        for number, held in enumerate(networks):
            for network in held:
                shift = network.max_prefixlen - network.prefixlen
                found = self._by_shift[network.version].setdefault(shift, {})
                key = int(network.network_address) >> shift
                found[key] = found.get(key, 0) | 1 << number

    def mask(self, address: Address) -> int:
        """The rules one of whose networks holds `address`."""
        mask = 0
        value = int(address)
        for shift, found in self._by_shift[address.version].items():
            mask |= found.get(value >> shift, 0)
        return mask


class PortIndex:
    """Rules by ranges of ports; one without any fits every port."""

    def __init__(self, ranges: Sequence[Iterable[PortRange]]) -> None:
        """`ranges` has those of each rule."""
        changes: dict[int, int] = {0: 0}
        for number, held in enumerate(ranges):
            bit = 1 << number
            spans = _merged(held) or [(0, 65535)]
            for first, last in spans:
                changes[first] = changes.get(first, 0) ^ bit
                changes[last + 1] = changes.get(last + 1, 0) ^ bit
        self._begins = sorted(changes)
        self._masks: list[int] = []
        mask = 0
        for begin in self._begins:
            mask ^= changes[begin]
            self._masks.append(mask)

    def mask(self, port: int) -> int:
        """The rules that `port` fits."""
        return self._masks[bisect_right(self._begins, port) - 1]


def _merged(ranges: Iterable[PortRange]) -> list[tuple[int, int]]:
    """Disjoint spans with the same ports."""
    spans: list[tuple[int, int]] = []
    for each in sorted(ranges, key=lambda each: each.first):
        if spans and each.first <= spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], max(spans[-1][1], each.last))
        else:
            spans.append((each.first, each.last))
    return spans
