"""Results that were measured before, kept so that nothing is computed twice and an interrupted evaluation goes on.

A result depends on weights, images, settings and the code that found it. A hash of all of them is the name of its
file: nothing in the cache is ever out of date, and it may be deleted at any time. A file whose content is not what was
written is measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from starzoo.cache_folder import cache_folder
from starzoo.errors import StarzooError
from starzoo.models.timm_folder import save_tensors

__all__ = ["EVALUATION", "ResultCache", "hash_tensors"]

EVALUATION = ("align", "data", "evaluate", "symmetry", "architecture.py", "layout.py", "optimization.py")


class ResultCache:
    """Results in a folder, one file each.

    Args:
        folder: Where they are kept; None for a cache that keeps nothing.
        rooms: The parts of this package whose code decides them.
    """

    def __init__(self, folder: Path | None, rooms: tuple[str, ...] = EVALUATION) -> None:
        self.folder, self.rooms = folder, rooms

    @classmethod
    def of_user(cls) -> ResultCache:
        """The one in the user's cache folder."""
        return cls(cache_folder("evaluations"))

    def remember(self, key: Mapping[str, Any], measure: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """A result, measured only if it is not there yet.

        Args:
            key: All that decides the result but the code, as a JSON value.
            measure: Measures it.

        Returns:
            The result.
        """
        if self.folder is None:
            return dict(measure())
        name = hashlib.sha256(json.dumps([key, code_version(self.rooms)], sort_keys=True).encode()).hexdigest()
        file = self.folder / f"{name}.safetensors"
        with suppress(OSError, SafetensorError, LookupError, ValueError), safe_open(file, "pt") as stored:
            found = {each: stored.get_tensor(each) for each in stored.keys()}  # noqa: SIM118 - it is no mapping
            if stored.metadata()["sha256"] == _seal(name, found):
                return found
        result = dict(measure())
        with suppress(StarzooError):  # a cache that cannot be written costs time, and nothing else
            save_tensors(file, result, {"sha256": _seal(name, result)})
        return result


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of some tensors with their names, types and shapes, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@cache
def code_version(rooms: tuple[str, ...]) -> str:
    """What makes results: timm, torch, and a hash of the code."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for room in rooms:
        for path in [root / room] if room.endswith(".py") else sorted((root / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return f"timm {version('timm')}, torch {version('torch')}, code {digest.hexdigest()[:16]}"


def _seal(name: str, tensors: Mapping[str, Tensor]) -> str:
    """Binds a result to its name, so that neither a damaged file nor another one passes for it."""
    return hashlib.sha256(f"{name}\0{hash_tensors(tensors)}".encode()).hexdigest()
