"""Guards of the folders that starzoo writes: no file of the user is overwritten."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from starzoo.errors import UsageError
from starzoo.hub.ref import ModelRef
from starzoo.star.manifest import MANIFEST
from starzoo.star.run.local_paths import LOCAL_PATHS
from starzoo.star.run.log import LOG
from starzoo.star.run.status import STATUS, is_status

__all__ = ["RUN_MARKERS", "check_folder_unused", "check_not_overwriting"]

RUN_MARKERS = (MANIFEST, LOCAL_PATHS)
"""Files of which each shows that a folder is that of a run; the second is the first that a run writes."""

_OUTPUT_FILES = ("README.md", "run.yaml", "model.safetensors", "permutations.safetensors", "plots", "metrics")


def check_folder_unused(folder: Path) -> None:
    """Make sure that the folder of a new run holds no files that the run would replace."""
    if _holds_any(folder, [*RUN_MARKERS, "checkpoints/*/manifest.json"]):
        return
    replaced = [name for name in _OUTPUT_FILES if os.path.lexists(folder / name)]
    if os.path.lexists(folder / STATUS) and not is_status(folder / STATUS):
        replaced.append(STATUS)
    if os.path.lexists(folder / LOG) and (folder / LOG).lstat().st_size:  # our own is empty before the run has begun
        replaced.append(LOG)
    if replaced:
        raise UsageError(str(folder), f"holds {replaced[0]}, which would be overwritten", hint="choose another --out")


def check_not_overwriting(folder: Path, inputs: Sequence[str], *, unless: Sequence[str]) -> None:
    """Make sure that a folder to write is no input and holds no other model; `unless` names files of ours in it."""
    folders = {ref.folder.resolve() for ref in map(ModelRef.parse, inputs) if ref.folder is not None}
    if folder.resolve() in folders or ((folder / "config.json").exists() and not _holds_any(folder, unless)):
        raise UsageError(str(folder), "holds another model, which would be overwritten", hint="choose another --out")


def _holds_any(folder: Path, patterns: Sequence[str]) -> bool:
    return any(any(folder.glob(pattern)) for pattern in patterns)
