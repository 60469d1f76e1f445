"""What is wrong with a configuration: every problem, with its key, its cause and a suggestion."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError

from msocks.errors import ConfigurationError, MsocksError

# pydantic's mark that the key itself is wrong, not what stands under it.
_OF_A_KEY = "[key]"
_MANUAL = "docs/reference/configuration.md has all keys"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        key: Where, such as ``agent.listen[0]``; empty for the file as a whole.
        cause: What is wrong there.
        suggestion: What to do about it.
    """

    key: str
    cause: str
    suggestion: str


class InvalidConfiguration(ConfigurationError):
    """A configuration that cannot be used.

    Attributes:
        source: The file, or what it was put together from.
        problems: At least one.
    """

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
        listed = "".join(f"\n  {line}" for problem in problems for line in problem_lines(problem))
        super().__init__(f"{source} has {count}:{listed}")
        self.source = source
        self.problems = tuple(problems)


def problem_lines(problem: Problem) -> list[str]:
    """The problem for a person: what, and below it what to do."""
    where = f"{problem.key}: " if problem.key else ""
    return [f"{where}{problem.cause}", f"    {problem.suggestion}"]


def from_error(key: str, error: MsocksError) -> Problem:
    """The problem that a check of ours has found."""
    return Problem(key, error.what, error.remedy or _MANUAL)


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """What pydantic found, in terms of the file; `model` is that of the whole file."""
    return [_problem(cast(dict[str, Any], details), model) for details in error.errors()]


def _problem(details: dict[str, Any], model: type[BaseModel]) -> Problem:
    location = details["loc"]
    key = _key(location)
    match details["type"]:
        case "extra_forbidden":
            return Problem(key, "there is no such key", _did_you_mean(location, model))
        case "missing":
            return Problem(key, "is missing", _example(location, model))
        case "value_error":
            cause = details["ctx"]["error"]
            if isinstance(cause, MsocksError):
                return Problem(key, cause.what, cause.remedy or _example(location, model))
    return Problem(key, f"is {_shown(details['input'])}; it {_expected(details)}", _example(location, model))


def _expected(details: dict[str, Any]) -> str:
    limits = details.get("ctx", {})
    match details["type"]:
        case "too_short":
            return "needs at least one entry"
        case "greater_than_equal":
            return f"has to be at least {limits['ge']:g}"
        case "greater_than":
            return f"has to be above {limits['gt']:g}"
        case "bool_type":
            return "has to be true or false"
        case "int_type":
            return "has to be a whole number"
        case "float_type" | "finite_number":
            return "has to be a number"
        case "list_type":
            return "has to be a list, in [ ]"
        case "model_type":
            return "has to be a table"
    return str(details["msg"]).removeprefix("Input ")


def _key(location: Iterable[int | str]) -> str:
    key = ""
    for part in location:
        if part == _OF_A_KEY:
            continue
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key


def _shown(value: Any) -> str:
    text = (
        "a table"
        if isinstance(value, dict)
        else "true"
        if value is True
        else "false"
        if value is False
        else repr(value)
    )
    return text if len(text) <= 60 else text[:57] + "..."


def _model_at(location: Sequence[int | str], model: type[BaseModel]) -> type[BaseModel]:
    """The model of the table in which the key at `location` lies."""
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        if field is not None:
            model = next(_models_in(field.annotation), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a type is made of, such as that of the entries of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _did_you_mean(location: Sequence[int | str], model: type[BaseModel]) -> str:
    known = list(_model_at(location, model).model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=2)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"here are known: {', '.join(known)}"


def _example(location: Sequence[int | str], model: type[BaseModel]) -> str:
    names = [part for part in location if isinstance(part, str)]
    field = _model_at([*names, ""][: len(names)], model).model_fields.get(names[-1]) if names else None
    if field is None or not field.examples:
        return _MANUAL
    return f"for instance: {names[-1]} = {field.examples[0]}"
