"""Offline mode: use the local cache only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["ONLINE_HINT", "cache_ref", "is_offline", "offline_mode"]

ONLINE_HINT = "leave --offline out, or unset HF_HUB_OFFLINE"
"""What to do where something cannot be had offline."""

_VARIABLE = "HF_HUB_OFFLINE"


def is_offline() -> bool:
    """Whether no request may be sent."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


@contextmanager
def offline_mode(wanted: bool = True) -> Iterator[None]:
    """Send no request to the Hub inside the block: neither this process nor one that it starts."""
    if not wanted:
        yield
        return
    from huggingface_hub import constants

    # Both libraries read the variable when they are imported, and look at these places since.
    places: list[Any] = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    before, said = [place.HF_HUB_OFFLINE for place in places], os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "1"
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
        if said is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = said


def cache_ref(repo: str, revision: str | None, sha: str) -> None:
    """Note in the client's cache, where it looks when it is offline, at which commit a branch or tag is."""
    from huggingface_hub import constants

    note = Path(constants.HF_HUB_CACHE) / repo.replace("/", "--") / "refs" / (revision or "main")
    with suppress(OSError):  # a cache that cannot be written serves no offline run
        if not note.is_file() or note.read_text(encoding="utf-8") != sha:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(sha, encoding="utf-8")
