"""What can go wrong in the lab. Every message says what happened and what to do next."""

from __future__ import annotations


class LabError(Exception):
    """Base of all errors that the lab raises on purpose.

    `remedy` is a sentence telling what to do next; it may be empty.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}" if self.remedy else self.message


class ConfigError(LabError):
    """A description of a lab or of a link makes no sense."""


class SetupError(LabError):
    """The lab could not be built or reached: privilege, device or program is missing."""


class CommandError(LabError):
    """A running lab refused a command, for example a cut of a link that it does not have."""


class ProcessFailed(LabError):
    """A program that a test ran inside the lab ended with a code other than 0, or did not end in time."""


class TransferError(LabError):
    """A pattern transfer did not arrive as it was sent: wrong bytes, wrong length, or a broken connection."""
