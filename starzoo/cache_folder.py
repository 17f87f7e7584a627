"""Where starzoo keeps what it can make again: `$STARZOO_CACHE`, else `starzoo` in the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder(kind: str) -> Path:
    """The folder for one kind of things; it may be deleted at any time.

    Args:
        kind: The name of the folder, such as `specs`.

    Returns:
        The folder, which may not exist.
    """
    if chosen := os.environ.get("STARZOO_CACHE"):
        return Path(chosen) / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "starzoo" / kind
