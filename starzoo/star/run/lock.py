"""One run at a time in a folder: two would remove each other's checkpoints."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import IO

from starzoo.errors import FolderInUseError
from starzoo.files import open_to_append
from starzoo.parallel import rank
from starzoo.star.run.log import LOG

__all__ = ["RunLock"]


class RunLock:
    """Keeps other runs out of a folder, as a context; on several processes the first one does so for all.

    It locks training.log, which a run never replaces. The system gives the lock back when the process ends, however
    that happens. Where a file system knows no locks there is none.

    Args:
        folder: The run's folder; it may not be there yet, and is not made before `take`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None

    def __enter__(self) -> RunLock:
        """Take it, where a run has begun in the folder before."""
        if rank() == 0 and (self._folder / LOG).is_file():
            self.take()
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        if self._file:
            self._file.close()

    def take(self) -> None:
        """Take it, if that is not done yet.

        Raises:
            FolderInUseError: Another run has it.
        """
        if self._file:
            return
        path = self._folder / LOG
        file = open_to_append(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                file.close()
                raise FolderInUseError(
                    f"{self._folder}: another run is at work in it",
                    hint="wait until it has ended, or choose another --out",
                    subject=str(self._folder),
                ) from error
        self._file = file
