"""The protocol by which long-running functions report progress."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "no_progress"]


class Progress(Protocol):
    """Called by long-running functions after each finished unit of work."""

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        """Report that `done` of `total` units of `stage` are finished."""


def no_progress(stage: str, done: int, total: int, **figures: float) -> None:
    """Ignore progress: the default of every function."""
