"""Known fingerprints of data sets, so that a start reads no image that an earlier one has read.

The key of a data set is its commit on the Hub, or the names, sizes and times of all files in a local folder, with the
rows and labels that are used. The cache may be deleted at any time. Where it cannot be written, images are read again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from filelock import FileLock

from starzoo.errors import StarzooError
from starzoo.files import cache_folder, write_text

__all__ = ["get_or_compute_fingerprint", "stamp_folder"]

_SCHEMA = 1


def get_or_compute_fingerprint(key: str, compute: Callable[[], tuple[str, int]]) -> tuple[str, int]:
    """Return what `compute` returns: the fingerprint, and how many images it has seen twice.

    Of the processes that ask at the same time one computes, and the others wait for it.
    """
    name = hashlib.sha256(f"{_SCHEMA}\0{key}".encode()).hexdigest()
    file = cache_folder("fingerprints") / f"{name}.json"
    with ExitStack() as stack:
        if not file.is_file():
            with suppress(OSError, NotImplementedError):
                file.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(file.with_suffix(".lock")))
        with suppress(OSError, ValueError, TypeError):
            fingerprint, shared = json.loads(file.read_text(encoding="utf-8"))
            return str(fingerprint), int(shared)
        found = compute()
        with suppress(StarzooError):
            write_text(file, json.dumps(found))
        return found


def stamp_folder(folder: Path) -> str:
    """Hash the names, sizes and times of all files in a folder; no file is read, and links are followed."""
    digest, seen = hashlib.sha256(str(folder).encode()), set[tuple[int, int]]()
    for root, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        status = Path(root).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a parent
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in sorted(files):
            with suppress(OSError):
                status = Path(root, name).stat()
                digest.update(f"{root}/{name}\0{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n".encode())
    return digest.hexdigest()
