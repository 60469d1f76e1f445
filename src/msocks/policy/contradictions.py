"""What is wrong with a policy although each of its values is right: rules that cannot be meant as they stand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from msocks.policy.model import LinkProfile, NoLink, Role, Rule
from msocks.policy.profiles import profile_of
from msocks.policy.terms import Selector


@dataclass(frozen=True, slots=True)
class Contradiction:
    """One of them.

    Attributes:
        key: Where, from the table of the policy on, such as ``rule[2].prefer``.
        cause: What is wrong there.
        suggestion: What to do about it.
    """

    key: str
    cause: str
    suggestion: str


def contradictions(
    rules: Sequence[Rule], profiles: Sequence[LinkProfile], links: Sequence[str] | None
) -> list[Contradiction]:
    """All there are; `links` are the interfaces that the agent may use, where it was told."""
    found: list[Contradiction] = []
    if links is not None:
        found += [
            _unknown_link(f"link.{profile.pattern}", profile.pattern, links)
            for profile in profiles
            if not any(fnmatchcase(name, profile.pattern) for name in links)
        ]
    found += _names_twice(rules)
    found += _never_reached(rules)
    for number, rule in enumerate(rules):
        key = f"rule[{number}]"
        if rule == Rule(name=rule.name):
            found.append(
                Contradiction(key, "matches everything and asks for nothing", "give it a preference, or leave it out")
            )
        if links is not None:
            found += _unknown_links(key, rule, links)
        found += _barred_preferences(key, rule, profiles)
        if links is not None and rule.no_link is NoLink.WAIT and not _leaves_any(rule, profiles, links):
            found.append(
                Contradiction(
                    key,
                    "bars every link there is, so its flows would wait for ever",
                    'allow one, or give no_link = "refuse"',
                )
            )
    return found


def _names_twice(rules: Sequence[Rule]) -> Iterator[Contradiction]:
    seen: dict[str, int] = {}
    for number, rule in enumerate(rules):
        first = seen.setdefault(rule.name, number)
        if first != number:
            yield Contradiction(
                f"rule[{number}].name", f"rule[{first}] has the name {rule.name!r} already", "give it another name"
            )


def _never_reached(rules: Sequence[Rule]) -> Iterator[Contradiction]:
    """A rule behind one that takes everything from it."""
    seen: dict[tuple[object, ...], int] = {}
    catch_all: int | None = None
    for number, rule in enumerate(rules):
        matched_by = tuple(frozenset(field) for field in rule.matched_by)
        before = catch_all if catch_all is not None else seen.get(matched_by)
        if before is not None:
            what = "everything" if catch_all is not None else "the same flows"
            yield Contradiction(
                f"rule[{number}]",
                f"is never reached: rule[{before}] ({rules[before].name}) matches {what} and comes first",
                f"put it before rule[{before}], or leave it out",
            )
        seen.setdefault(matched_by, number)
        if catch_all is None and rule.is_catch_all:
            catch_all = number


def _unknown_links(key: str, rule: Rule, links: Sequence[str]) -> Iterator[Contradiction]:
    for field, selectors in _selectors(rule):
        for selector in selectors:
            if selector.kind is None and not any(fnmatchcase(name, selector.text) for name in links):
                yield _unknown_link(f"{key}.{field}", selector.text, links)


def _unknown_link(key: str, pattern: str, links: Sequence[str]) -> Contradiction:
    return Contradiction(
        key, f"there is no link {pattern}", f"agent.links has {', '.join(links)}; add it there, or correct the name"
    )


def _barred_preferences(key: str, rule: Rule, profiles: Sequence[LinkProfile]) -> Iterator[Contradiction]:
    """A link that is preferred by name, and may not be used."""
    for term in rule.prefer:
        name = term.name if isinstance(term, Selector) else None
        if name is None:
            continue
        profile = profile_of(name, profiles)
        role = _role(rule, profile, name)
        if role is Role.NEVER:
            cause = f"prefers {name}, whose role is never"
        elif rule.only and not any(_selects(selector, profile, name) is not False for selector in rule.only):
            cause = f"prefers {name}, which `only` does not have"
        elif rule.max_cost is not None and profile.cost is not None and profile.cost > rule.max_cost:
            cause = f"prefers {name}, which costs {profile.cost:g}, more than max_cost"
        else:
            continue
        yield Contradiction(f"{key}.prefer", cause, f"leave {name} out of prefer, or allow it")


def _leaves_any(rule: Rule, profiles: Sequence[LinkProfile], links: Sequence[str]) -> bool:
    """Whether there may be a link that the rule does not bar; what depends on a kind that is not known may be."""
    for name in links:
        profile = profile_of(name, profiles)
        if rule.only and all(_selects(selector, profile, name) is False for selector in rule.only):
            continue
        if _role(rule, profile, name) is Role.NEVER:
            continue
        if rule.max_cost is not None and profile.cost is not None and profile.cost > rule.max_cost:
            continue
        return True
    return False


def _role(rule: Rule, profile: LinkProfile, name: str) -> Role | None:
    """The role of a link; None where that depends on a kind that only the kernel knows."""
    for selector, given in rule.roles:
        selects = _selects(selector, profile, name)
        if selects is not False:
            return given if selects else None
    return profile.role


def _selects(selector: Selector, profile: LinkProfile, name: str) -> bool | None:
    """Whether a selector selects a link; None where that depends on a kind that only the kernel knows."""
    if selector.kind is not None:
        return None if profile.kind is None else profile.kind is selector.kind
    return fnmatchcase(name, selector.text)


def _selectors(rule: Rule) -> Iterable[tuple[str, list[Selector]]]:
    yield "prefer", [term for term in rule.prefer if isinstance(term, Selector)]
    yield "only", list(rule.only)
    yield "roles", [selector for selector, _ in rule.roles]
