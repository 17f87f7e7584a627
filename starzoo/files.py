"""Atomic file writes that never follow symlinks, and bounded reads."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from starzoo.errors import ResourceError, UntrustedInputError, UsageError

__all__ = [
    "atomic_write",
    "bytes_on_disk",
    "cache_folder",
    "check_inside",
    "is_inside",
    "list_cache",
    "make_room",
    "new_folder",
    "open_append",
    "open_file",
    "read_file",
    "translate_write_errors",
    "write_text",
]

# Errors of a wrong path; any other is for example a full or broken disk.
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
    """Read a file that may come from a stranger, of at most `limit` bytes, in one of the folders `inside` if given."""
    subject = subject or str(path)
    with open_file(path, inside=inside, subject=subject) as file, _reading(subject):
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1) if size <= limit else b""  # a buffer of the limit would take longer than the file
        if len(content) > size:
            content += file.read(limit + 1 - len(content))  # it has grown
        if max(size, len(content)) > limit:
            raise UntrustedInputError(subject, f"expected at most {limit:,} bytes, got more", hint="use another file")
        return content


@contextmanager
def open_file(path: Path, *, inside: Collection[Path] = (), subject: str = "") -> Iterator[BufferedReader]:
    """Open a file that may come from a stranger: only a regular file, without waiting for a pipe or a device."""
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
    """Write a text file atomically; a link is replaced, and its target is unchanged."""
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def open_append(path: Path) -> IO[bytes]:
    """Open a file to append lines; a link is refused."""
    with translate_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666), "ab")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a draft that replaces the file atomically; a link is replaced, and its target is unchanged.

    The file gets the mode of the umask; safetensors would write it for its owner only.
    """
    with translate_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(path.parent, ".writing-") as scratch:
            draft = scratch / path.name
            yield draft
            _fsync(draft)
            draft.chmod(scratch.stat().st_mode & 0o666)
            draft.replace(path)


@contextmanager
def new_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a temporary folder with the mode of the umask; others cannot enter it before it is moved."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as hidden:
        folder = Path(hidden) / "draft"
        folder.mkdir()
        yield folder


@contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Raise an error of starzoo for a failed write: `UsageError` for a wrong path, else `ResourceError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        subject, problem = str(path), f"cannot be written: {reason}"
        if isinstance(error, OSError) and error.errno in _WRONG_PATH:
            raise UsageError(subject, problem, hint="choose another folder") from error
        raise ResourceError(subject, problem, hint="free disk space or choose another folder") from error


def check_inside(path: Path, folder: Path) -> None:
    """Refuse a link that leads out of a folder."""
    if not is_inside(path, folder):
        problem = f"expected a file in {folder}, got a link that leads out of it"
        raise UsageError(str(path), problem, hint="put the file itself there")


def is_inside(path: str | Path, folder: Path) -> bool:
    """Whether a path leads into a folder, or from a snapshot in the Hub's cache into its blobs."""
    root, target = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    blobs = [parent.parent / "blobs" for parent in root.parents if parent.name == "snapshots"]
    return any(target.is_relative_to(allowed) for allowed in (root, *blobs))


@contextmanager
def _reading(subject: str) -> Iterator[None]:
    """Raise `UntrustedInputError` for a failed read; a null byte in a name is a ValueError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UntrustedInputError(
            subject,
            f"cannot be read ({getattr(error, 'strerror', None) or error})",
            hint="check the path and its rights",
        ) from error


def _fsync(path: Path) -> None:
    """Flush a file to the disk before it gets its name, so that a power cut cannot leave an empty file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def cache_folder(kind: str) -> Path:
    """Return the folder of one kind of cached files; `huggingface_hub.cached_assets_path` would also make it."""
    from huggingface_hub import constants

    return Path(os.environ.get("HF_ASSETS_CACHE", constants.HF_ASSETS_CACHE)).expanduser() / "starzoo" / kind


def make_room(folder: Path, size: int, *, keep: Path | None = None) -> bool:
    """Whether a cache may grow; with it, it takes at most half of the free disk, itself included.

    The least recently used files are removed for that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted((status.st_atime, bytes_on_disk(status), path) for path, status in list_cache(folder))
    used = sum(taken for _, taken, _ in files)
    most = (used + shutil.disk_usage(folder).free) // 2
    for _, freed, path in files:
        if used + size > most and path != keep:
            path.unlink(missing_ok=True)
            used -= freed
    return used + size <= most


def list_cache(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """List the files of a cache; another process may remove some meanwhile."""
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    yield path, status


def bytes_on_disk(status: os.stat_result) -> int:
    """Return what a file takes on the disk, without its holes."""
    return getattr(status, "st_blocks", -(-status.st_size // 512)) * 512
