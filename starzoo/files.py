"""Atomic file writes that never follow symlinks, and bounded reads."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from starzoo.errors import ResourceError, UntrustedInputError, UsageError

__all__ = [
    "atomic_write",
    "cache_folder",
    "check_inside",
    "is_inside",
    "new_folder",
    "open_append",
    "open_file",
    "read_file",
    "translate_write_errors",
    "write_text",
]

# The path is wrong; all else (a full disk, a broken one) is a lack of something.
_WRONG_PATH = frozenset({
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EROFS,
})


_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def read_file(path: Path, limit: int, *, inside: Collection[Path] = (), subject: str = "") -> bytes:
    """Read a file that may come from a stranger, as `open_file` opens it."""
    subject = subject or str(path)
    with open_file(path, inside=inside, subject=subject) as file, _reading(subject):
        content = file.read(limit + 1) if os.fstat(file.fileno()).st_size <= limit else None
        if content is None or len(content) > limit:
            raise UntrustedInputError(subject, f"expected at most {limit:,} bytes, got more", hint="use another file")
        return content


@contextmanager
def open_file(path: Path, *, inside: Collection[Path] = (), subject: str = "") -> Iterator[BufferedReader]:
    """Open a file that may come from a stranger: only a regular one, and without waiting for a pipe or a device."""
    subject = subject or str(path)
    with _reading(subject):
        target = os.path.realpath(path)
        if inside and not any(is_inside(target, folder) for folder in inside):
            raise UntrustedInputError(
                subject,
                f"expected a file in {next(iter(inside))}, got {target}",
                hint="put the file itself there, or name the folder that it lies in",
            )
        descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise UntrustedInputError(
                subject,
                f"expected a regular file, got {_KINDS.get(stat.S_IFMT(mode), 'a device')}",
                hint="put the file itself there",
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole or not at all; a link is replaced, and what it leads to stays as it is."""
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def open_append(path: Path) -> IO[bytes]:
    """Open a file to which lines are added, never one to which a link leads."""
    with translate_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666), "ab")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file as a whole or not at all; a link is replaced, and what it leads to stays as it is.

    Its mode is the one that the umask gives, whoever writes the draft: safetensors lets nobody else read its files.
    """
    with translate_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(path.parent, ".writing-") as scratch:
            draft = scratch / path.name
            yield draft
            _flush(draft)
            draft.chmod(scratch.stat().st_mode & 0o666)
            draft.replace(path)


@contextmanager
def new_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a folder with the mode that the umask gives, which nobody else can enter before it is moved to its place."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as hidden:
        folder = Path(hidden) / "draft"
        folder.mkdir()
        yield folder


@contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Say which file or folder cannot be written, and whether its path or the disk is at fault."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        subject, problem = str(path), f"cannot be written: {reason}"
        if isinstance(error, OSError) and error.errno in _WRONG_PATH:
            raise UsageError(subject, problem, hint="choose another folder") from error
        raise ResourceError(subject, problem, hint="free disk space or choose another folder") from error


def check_inside(path: Path, folder: Path) -> None:
    """Make sure that a file or folder in a folder is no link to something elsewhere, which is somebody else's."""
    if not is_inside(path, folder):
        raise UsageError(str(path), f"is a link that leads out of {folder}", hint="put the file itself there")


def is_inside(path: str | Path, folder: Path) -> bool:
    """Tell whether a path leads into a folder, or from a snapshot of the Hub's cache to the blobs beside it."""
    home, target = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    blobs = [above.parent / "blobs" for above in home.parents if above.name == "snapshots"]
    return any(target.is_relative_to(place) for place in (home, *blobs))


@contextmanager
def _reading(subject: str) -> Iterator[None]:
    """Say which file cannot be read; a name may hold a null byte, which is a ValueError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UntrustedInputError(
            subject,
            f"cannot be read ({getattr(error, 'strerror', None) or error})",
            hint="check the path and its rights",
        ) from error


def _flush(path: Path) -> None:
    """Put a file on the disk before it gets its name, so that a power cut cannot leave the name without content."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def cache_folder(kind: str) -> Path:
    """The folder for one kind of cached files, in the Hub client's folder of assets; it may be deleted at any time."""
    from huggingface_hub import constants

    return Path(os.environ.get("HF_ASSETS_CACHE", constants.HF_ASSETS_CACHE)).expanduser() / "starzoo" / kind
