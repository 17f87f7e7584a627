"""What a repository on the Hub may be called."""

from __future__ import annotations

import re

from starzoo.errors import UsageError

__all__ = ["check_repo", "is_repo"]

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def is_repo(name: str) -> bool:
    """Whether `name` has the form `user/name` of a repository."""
    return bool(_REPO.fullmatch(name)) and ".." not in name and "--" not in name


def check_repo(name: str) -> None:
    """Make sure that a name has the form of a repository.

    Args:
        name: What the user wrote.

    Raises:
        UsageError: It has not.
    """
    if not is_repo(name):
        raise UsageError(f"{name!r}: is no repository name", hint="write user/name", subject=name)
