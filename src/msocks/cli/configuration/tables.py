"""What all tables of a configuration file have in common, and how a text in one becomes a value."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, PlainValidator

from msocks.errors import ConfigurationError

Value = TypeVar("Value")
Choice = TypeVar("Choice", bound=StrEnum)


class Table(BaseModel):
    """A table without unknown keys, whose values are taken for what they are."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


def text(read: Callable[[str], Value], what: str) -> PlainValidator:
    """A string that `read` turns into a value; `what` names it."""

    def validate(value: Any) -> Value:
        if not isinstance(value, str):
            raise ConfigurationError(f"{what} is written as a string, in quotes")
        return read(value)

    return PlainValidator(validate)


def choice(choices: type[Choice], what: str) -> PlainValidator:
    """One of the words of an enumeration."""

    def read(value: str) -> Choice:
        try:
            return choices(value)
        except ValueError:
            raise ConfigurationError(
                f"there is no {what} {value!r}", remedy=f"choose one of {', '.join(choices)}"
            ) from None

    return text(read, f"the {what}")


def is_link_name(value: str) -> bool:
    """Whether an interface could have that name, or that glob."""
    return 1 <= len(value.encode()) <= 15 and not any(each in "/:" or each.isspace() for each in value)
