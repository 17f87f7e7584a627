"""The errors of starzoo, each kind with its exit code.

An error names its subject, which is a file, a repository or an option, and its problem in one line. The hint says what
to do next.
"""

from __future__ import annotations

import errno
import re
from typing import ClassVar

__all__ = [
    "CheckpointError",
    "HubError",
    "IncompatibleError",
    "InterruptedRunError",
    "NumericalError",
    "PreemptedError",
    "ResourceError",
    "RunLockedError",
    "StarzooError",
    "UncheckedError",
    "UntrustedInputError",
    "UsageError",
    "exit_code_of",
    "to_starzoo_error",
    "without_password",
]

_PASSWORD = re.compile(r"(?<=://)[^/\s@\"'<>]*@")


def without_password(text: str) -> str:
    """Remove user names and passwords from the URLs in a text, for example from that of a mirror (HF_ENDPOINT)."""
    return _PASSWORD.sub("", text)


class StarzooError(Exception):
    """Base of all errors that starzoo raises on purpose.

    Attributes:
        message: One line, `subject: problem`.
        hint: What to do next, or an empty string.
        subject: The file, repository or option at fault, or an empty string.
        problem: What is wrong with it.
        exit_code: The exit code of a command that ends with this error.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, subject: str, problem: str, *, hint: str = "") -> None:
        message = f"{subject}: {problem}" if subject else problem
        super().__init__(subject, problem)
        # Names from strangers and messages of libraries may have several lines, and URLs a password.
        self.message = without_password(" ".join(message.splitlines()))
        self.hint = without_password(hint)
        self.subject = subject
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(StarzooError):
    """A wrong command, option, configuration value or data set name."""

    exit_code = 2


class RunLockedError(UsageError):
    """A folder that another run is using."""


class UntrustedInputError(StarzooError):
    """A file or repository that is malformed, hostile or otherwise not safe to load."""

    exit_code = 3


class HubError(StarzooError):
    """A request to the Hub or over the network failed."""

    exit_code = 4


class IncompatibleError(StarzooError):
    """Models (or a model and a data set) that cannot be used together."""

    exit_code = 5


class NumericalError(StarzooError):
    """A loss, weight or metric that is not finite where it must be."""

    exit_code = 6


class CheckpointError(StarzooError):
    """No checkpoint is valid, or it belongs to another run."""

    exit_code = 7


class ResourceError(StarzooError):
    """Out of disk or memory."""

    exit_code = 8


class UncheckedError(StarzooError):
    """All checks that could be made passed, but some could not be made."""

    exit_code = 9


class PreemptedError(StarzooError):
    """A scheduler stopped the run; its state is saved and the same command resumes it."""

    exit_code = 75


class InterruptedRunError(StarzooError):
    """Ctrl-C stopped the run; finished work is saved and the same command resumes it."""

    exit_code = 130


def to_starzoo_error(error: BaseException) -> StarzooError | None:
    """Translate an error of the system or of a library, or return None for a fault in the program."""
    if isinstance(error, StarzooError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return InterruptedRunError("", "interrupted", hint="run the same command again")
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        problem = "the disk is full" if error.filename else f"the disk is full: {error}"
        return ResourceError(error.filename or "", problem, hint="free space, or write elsewhere")
    if isinstance(error, PermissionError | NotADirectoryError | IsADirectoryError | FileExistsError) and error.filename:
        return UsageError(str(error.filename), str(error.strerror), hint="choose another path")
    kind, text = type(error).__name__, str(error)
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "can't allocate memory" in text:
        return ResourceError("", f"out of memory: {text or kind}", hint="use a smaller batch or fewer jobs")
    if kind == "RuntimeError" and ("DataLoader worker" in text or "shared memory" in text):
        hint = "use fewer runtime.workers, or give the run more memory and a larger /dev/shm"
        return ResourceError("", f"a process that loads images has failed: {text}", hint=hint)
    return None


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a command that ends with an error; 1 for a fault in the program."""
    translated = to_starzoo_error(error)
    return translated.exit_code if translated else 1
