"""Everything starzoo raises on purpose: one tree, one exit code per kind, data as attributes.

A message is one line that names the file or repository; `hint` says what to do next.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "CheckpointError",
    "HubError",
    "IncompatibleError",
    "InterruptedRunError",
    "NumericalError",
    "PreemptedError",
    "ResourceError",
    "StarzooError",
    "UntrustedInputError",
    "UsageError",
]


class StarzooError(Exception):
    """Base of all errors that starzoo raises on purpose.

    Attributes:
        message: One line that says what is wrong and names the file or repository.
        hint: What to do next, or an empty string.
        subject: The file, repository or option at fault, or an empty string.
        exit_code: The exit code of a command that ends with this error.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", subject: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.subject = subject

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(StarzooError):
    """A wrong command, option, configuration value or data set name."""

    exit_code = 2


class UntrustedInputError(StarzooError):
    """A file or repository that is malformed, hostile or otherwise not safe to load."""

    exit_code = 3


class HubError(StarzooError):
    """The Hub or the network did not give what was asked for."""

    exit_code = 4


class IncompatibleError(StarzooError):
    """Models (or a model and a data set) that cannot be used together."""

    exit_code = 5


class NumericalError(StarzooError):
    """A loss, weight or metric that is not finite where it must be."""

    exit_code = 6


class CheckpointError(StarzooError):
    """No valid checkpoint, or one that does not belong to this run."""

    exit_code = 7


class ResourceError(StarzooError):
    """Out of disk or memory."""

    exit_code = 8


class PreemptedError(StarzooError):
    """The run was told to stop; its state is saved and the same command resumes it."""

    exit_code = 75


class InterruptedRunError(StarzooError):
    """Ctrl-C; what was finished is kept and the same command resumes it."""

    exit_code = 130
