"""A cache of measured results, named by their inputs.

A result depends on weights, images, settings and `RESULTS_VERSION`; a hash of all of them is the name of its file.
The cache may be deleted at any time. A damaged file is measured again. The least recently used results are removed when
the cache would take more than half of the free disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from starzoo.errors import ResourceError, StarzooError
from starzoo.files import cache_folder, make_room
from starzoo.models.timm_folder import save_tensors
from starzoo.models.weights import hash_tensors

__all__ = ["RESULTS_VERSION", "ResultCache"]

RESULTS_VERSION = 2
"""Raised with every change that gives the same inputs another result."""


class ResultCache:
    """Results in a folder, one file each; without one, or on a full disk, they stay in memory."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._memory: dict[str, dict[str, Tensor]] = {}  # what cannot be written

    @classmethod
    def default(cls) -> ResultCache:
        """Return the cache in the user's cache folder."""
        return cls(cache_folder("evaluations"))

    def get_or_compute(self, key: Mapping[str, Any], measure: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return a result, measured only if it is not in the cache."""
        versions = [RESULTS_VERSION, version("timm"), version("torch")]
        name = hashlib.sha256(json.dumps([key, versions], sort_keys=True).encode()).hexdigest()
        result = self._memory.get(name) or self._read(name)
        if result is None:
            result = dict(measure())
            self._write(name, result)
        return result

    def _read(self, name: str) -> dict[str, Tensor] | None:
        if self.folder is None:
            return None
        file = self.folder / f"{name}.safetensors"
        with suppress(OSError, SafetensorError, LookupError, ValueError), safe_open(file, "pt") as stored:
            result = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - it is no mapping
            if stored.metadata()["sha256"] == _checksum(name, result):
                with suppress(OSError):  # the least recently used results are removed first
                    os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns))
                return result
        return None

    def _write(self, name: str, result: dict[str, Tensor]) -> None:
        try:
            if self.folder is None or not make_room(self.folder, sum(tensor.nbytes for tensor in result.values())):
                raise ResourceError(str(self.folder), "is full")
            save_tensors(self.folder / f"{name}.safetensors", result, {"sha256": _checksum(name, result)})
        except (OSError, StarzooError):
            self._memory[name] = result


def _checksum(name: str, tensors: Mapping[str, Tensor]) -> str:
    """Hash a result with its name, so that neither a damaged file nor another result passes for it."""
    return hashlib.sha256(f"{name}\0{hash_tensors(tensors)}".encode()).hexdigest()
