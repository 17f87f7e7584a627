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
"""The hint of an error about a file that is not in the local cache."""

_VARIABLE = "HF_HUB_OFFLINE"


def is_offline() -> bool:
    """Return whether requests to the Hub are forbidden."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


@contextmanager
def offline_mode(wanted: bool = True) -> Iterator[None]:
    """Send no request to the Hub inside the block, from this process or one that it starts."""
    if not wanted:
        yield
        return
    from huggingface_hub import constants

    # Both libraries read the variable when they are imported, and these attributes afterwards.
    modules: list[Any] = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    settings, variable = [module.HF_HUB_OFFLINE for module in modules], os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "1"
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, setting in zip(modules, settings, strict=True):
            module.HF_HUB_OFFLINE = setting
        if variable is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = variable


def cache_ref(repo: str, revision: str | None, sha: str) -> None:
    """Write the commit of a branch or tag into the client's cache, where the client reads it offline.

    `repo` starts with its type: `models/user/name`.
    """
    from huggingface_hub import constants

    file = Path(constants.HF_HUB_CACHE) / repo.replace("/", "--") / "refs" / (revision or "main")
    with suppress(OSError):  # without a writable cache there is no offline run either
        if not file.is_file() or file.read_text(encoding="utf-8") != sha:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(sha, encoding="utf-8")
