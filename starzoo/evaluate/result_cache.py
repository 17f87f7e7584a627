"""A cache of measured results, named by their inputs.

A result depends on weights, images, settings and `RESULTS_VERSION`; a hash of all of them is the name of its file.
The cache may be deleted at any time. A damaged file is measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from starzoo.errors import StarzooError
from starzoo.files import cache_folder
from starzoo.models.timm_folder import save_tensors
from starzoo.models.weights import hash_tensors

__all__ = ["RESULTS_VERSION", "ResultCache"]

RESULTS_VERSION = 2
"""Raised with every change that gives the same inputs another result."""


class ResultCache:
    """Results in a folder, one file each."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def default(cls) -> ResultCache:
        """Return the cache in the user's cache folder."""
        return cls(cache_folder("evaluations"))

    def get_or_compute(self, key: Mapping[str, Any], measure: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return a result, measured only if it is not in the cache."""
        if self.folder is None:
            return dict(measure())
        versions = [RESULTS_VERSION, version("timm"), version("torch")]
        name = hashlib.sha256(json.dumps([key, versions], sort_keys=True).encode()).hexdigest()
        file = self.folder / f"{name}.safetensors"
        with suppress(OSError, SafetensorError, LookupError, ValueError), safe_open(file, "pt") as stored:
            result = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - it is no mapping
            if stored.metadata()["sha256"] == _checksum(name, result):
                return result
        result = dict(measure())
        with suppress(StarzooError):  # a cache that cannot be written costs time, and nothing else
            save_tensors(file, result, {"sha256": _checksum(name, result)})
        return result


def _checksum(name: str, tensors: Mapping[str, Tensor]) -> str:
    """Hash a result with its name, so that neither a damaged file nor another result passes for it."""
    return hashlib.sha256(f"{name}\0{hash_tensors(tensors)}".encode()).hexdigest()
