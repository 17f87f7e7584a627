"""Valid names of repositories and commits, and the files of a star."""

from __future__ import annotations

import re

from starzoo.errors import UsageError

__all__ = ["METRICS", "PLOTS", "check_repo", "is_commit", "is_repo", "is_revision", "split_repo"]

METRICS = tuple(f"metrics/{name}.csv" for name in ("paths", "curves", "qualities", "ood"))
"""The tables of a star, in its folder."""

PLOTS = tuple(
    f"plots/{name}-{split}.{extension}"
    for name in ("paths", "quality", "cost", "plane")
    for split in ("train", "test")
    for extension in ("png", "svg")
)
"""The figures of a star, in its folder."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FOLDER = re.compile(r"[A-Za-z0-9_][\w.+=-]{0,95}", re.ASCII)
# What git refuses in the name of a branch or tag (`git check-ref-format`): spaces, control bytes, `~^:?*[\`, `@{`, `@`,
# a leading dash, and a `/` or `.` that would make another path, such as one out of a folder. Lone surrogates too.
_NO_REVISION = re.compile(r"[\x00-\x20\x7f~^:?*\[\\\ud800-\udfff]|@\{|^@$|^-|^/|//|/$|\.\.|(^|/)\.|\.$|\.lock(/|$)")
_MAX_REVISION_BYTES = 250  # git appends `.lock` for the name of a file
_MAX_FOLDER_DEPTH = 8
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def is_repo(name: str) -> bool:
    """Return whether `name` has the form `user/name` of a repository."""
    return bool(_REPO.fullmatch(name)) and ".." not in name and "--" not in name


def is_commit(revision: str | None) -> bool:
    """Return whether a revision is a full commit hash, which cannot move as a branch does."""
    return revision is not None and bool(_COMMIT.fullmatch(revision))


def is_revision(text: str) -> bool:
    """Return whether git allows `text` as the name of a branch, a tag or a commit."""
    return bool(text) and not _NO_REVISION.search(text) and len(text.encode()) <= _MAX_REVISION_BYTES


def split_repo(name: str) -> tuple[str, str] | None:
    """Split `user/name/folder` into the repository and the folder; return None for an invalid name."""
    user, _, rest = name.partition("/")
    short, _, folder = rest.partition("/")
    repo, parts = f"{user}/{short}", folder.split("/") if folder else []
    if not is_repo(repo) or name.endswith("/") or ".." in folder or len(parts) > _MAX_FOLDER_DEPTH:
        return None
    return (repo, folder) if all(map(_FOLDER.fullmatch, parts)) else None


def check_repo(name: str) -> None:
    """Raise a `UsageError` unless `name` has the form of a repository."""
    if not is_repo(name):
        raise UsageError(name, "expected the name of a repository", hint="write user/name")
