"""A lock that keeps a folder to one run at a time."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from starzoo.errors import RunLockedError
from starzoo.files import translate_write_errors
from starzoo.parallel import rank

__all__ = ["RunLock"]

_FILE = ".lock"


class RunLock:
    """Keeps other runs out of a folder, as a context; the main process holds it for all.

    The system releases the lock when the process ends, however that happens.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / _FILE)

    def __enter__(self) -> RunLock:
        """Acquire the lock if a run has begun in the folder before."""
        if rank() == 0 and (self._folder / _FILE).exists():
            self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        self._lock.release()

    def acquire(self) -> None:
        """Acquire the lock, unless this run holds it."""
        if self._lock.is_locked:
            return
        with translate_write_errors(self._folder / _FILE):
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(blocking=False)
            except Timeout as error:
                raise RunLockedError(
                    str(self._folder),
                    "another run is at work in it",
                    hint="wait until it has ended, or choose another --out",
                ) from error
