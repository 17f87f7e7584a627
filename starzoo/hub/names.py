"""Valid names of repositories and commits."""

from __future__ import annotations

import re

from starzoo.errors import UsageError

__all__ = ["METRICS", "PLOTS", "check_repo", "is_commit", "is_repo", "is_revision", "split_repo"]

METRICS = tuple(f"metrics/{name}.csv" for name in ("paths", "curves", "qualities"))
"""The tables of a star, in its folder."""

PLOTS = tuple(
    f"plots/{name}-{split}.{ending}"
    for name in ("paths", "quality", "cost", "plane")
    for split in ("train", "test")
    for ending in ("png", "svg")
)
"""Its figures."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FOLDER = re.compile(r"[A-Za-z0-9_][\w.+=-]{0,95}", re.ASCII)
# What git refuses in the name of a branch or tag (`git check-ref-format`): spaces, control bytes, `~^:?*[\`, `@{`, `@`,
# a dash first, and `/` or `.` where they make no path, so that none leads out of a folder. And what is no Unicode.
_NO_REVISION = re.compile(r"[\x00-\x20\x7f~^:?*\[\\\ud800-\udfff]|@\{|^@$|^-|^/|//|/$|\.\.|(^|/)\.|\.$|\.lock(/|$)")
_LONGEST_REVISION = 250  # bytes, to which git adds `.lock` for the name of a file
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def is_repo(name: str) -> bool:
    """Whether `name` has the form `user/name` of a repository."""
    return bool(_REPO.fullmatch(name)) and ".." not in name and "--" not in name


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit in full, which never becomes another one as a branch does."""
    return revision is not None and bool(_COMMIT.fullmatch(revision))


def is_revision(text: str) -> bool:
    """Whether a branch, a tag or a commit may be called so: all that git allows."""
    return bool(text) and not _NO_REVISION.search(text) and len(text.encode()) <= _LONGEST_REVISION


def split_repo(name: str) -> tuple[str, str] | None:
    """Tell a repository from the folder in it."""
    user, _, rest = name.partition("/")
    short, _, folder = rest.partition("/")
    repo, parts = f"{user}/{short}", folder.split("/") if folder else []
    if not is_repo(repo) or name.endswith("/") or ".." in folder or len(parts) > 8:
        return None
    return (repo, folder) if all(map(_FOLDER.fullmatch, parts)) else None


def check_repo(name: str) -> None:
    """Make sure that a name has the form of a repository."""
    if not is_repo(name):
        raise UsageError(name, "is no repository name", hint="write user/name")
