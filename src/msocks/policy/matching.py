"""The first rule that matches a flow, and why the others before it do not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import translate
from ipaddress import IPv4Network, IPv6Network

from msocks.policy.index import NetworkIndex, PortIndex, TextIndex
from msocks.policy.model import FlowFacts, Rule


class RuleBook:
    """Rules in their order; the first that matches decides."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._process = TextIndex([rule.process for rule in rules])
        self._tag = TextIndex([rule.tag for rule in rules])
        self._user = TextIndex([[glob for glob in rule.user if not glob.isdecimal()] for rule in rules])
        self._uid = TextIndex([[uid for uid in rule.user if uid.isdecimal()] for rule in rules])
        self._names = TextIndex([_names(rule) for rule in rules])
        self._networks = NetworkIndex([_networks(rule) for rule in rules])
        self._sources = NetworkIndex([rule.source for rule in rules])
        self._ports = PortIndex([rule.port for rule in rules])
        self._anywhere = _bits(not rule.destination for rule in rules)
        self._from_anywhere = _bits(not rule.source for rule in rules)
        self._for_anybody = _bits(not rule.user for rule in rules)
        self._by_program = _bits(bool(rule.process or rule.user) for rule in rules)

    def match(self, facts: FlowFacts) -> Rule | None:
        """The first rule that matches; None where none does."""
        mask = self._mask(facts)
        return self.rules[(mask & -mask).bit_length() - 1] if mask else None

    def asks_for_program(self, facts: FlowFacts) -> bool:
        """Whether process or user could change which rule it is; both are taken for unknown."""
        candidates = self._known(facts) & self._by_program
        decided = self._mask(facts)
        if not candidates:
            return False
        return not decided or candidates & -candidates < decided & -decided

    def _mask(self, facts: FlowFacts) -> int:
        mask = self._known(facts) & self._process.mask(facts.process)
        if not mask & ~self._for_anybody:
            return mask
        account = self._for_anybody
        if facts.user is not None:
            account |= self._user.mask(facts.user) & self._user.constrained
        if facts.uid is not None:
            account |= self._uid.mask(str(facts.uid)) & self._uid.constrained
        return mask & account

    def _known(self, facts: FlowFacts) -> int:
        """What fits, the program aside."""
        source = self._from_anywhere | (0 if facts.source is None else self._sources.mask(facts.source))
        return self._to(facts) & self._tag.mask(facts.tag) & source

    def _to(self, facts: FlowFacts) -> int:
        mask = self._ports.mask(facts.port)
        if isinstance(facts.host, str):
            return mask & (self._anywhere | self._names.mask(facts.host) & self._names.constrained)
        return mask & (self._anywhere | self._networks.mask(facts.host))


def mismatches(rule: Rule, facts: FlowFacts) -> tuple[str, ...]:
    """The fields of `rule` that `facts` do not fit; empty where it matches."""
    missed = []
    if rule.process and not _fits(rule.process, facts.process):
        missed.append("process")
    if rule.user and not (
        _fits([glob for glob in rule.user if not glob.isdecimal()], facts.user)
        or (facts.uid is not None and str(facts.uid) in rule.user)
    ):
        missed.append("user")
    if rule.tag and not _fits(rule.tag, facts.tag):
        missed.append("tag")
    if rule.source and not (facts.source is not None and any(facts.source in network for network in rule.source)):
        missed.append("source")
    if rule.destination and not _reaches(rule, facts):
        missed.append("destination")
    if rule.port and not any(each.first <= facts.port <= each.last for each in rule.port):
        missed.append("port")
    return tuple(missed)


def _fits(globs: Sequence[str], value: str | None) -> bool:
    return value is not None and any(re.match(translate(glob), value) for glob in globs)


def _reaches(rule: Rule, facts: FlowFacts) -> bool:
    if isinstance(facts.host, str):
        return _fits(_names(rule), facts.host)
    return any(facts.host in network for network in _networks(rule))


def _names(rule: Rule) -> list[str]:
    return [each for each in rule.destination if isinstance(each, str)]


def _networks(rule: Rule) -> list[IPv4Network | IPv6Network]:
    return [each for each in rule.destination if not isinstance(each, str)]


def _bits(truths: Iterable[bool]) -> int:
    """The set of the rules of which something is true."""
    return sum(1 << number for number, truth in enumerate(truths) if truth)
