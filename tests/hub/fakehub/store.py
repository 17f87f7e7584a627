"""What lies on the Hub: repositories with their commits, large files by their hashes, and collections."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import yaml

LARGE_SUFFIXES = (".safetensors", ".bin", ".pth", ".ckpt", ".npz", ".parquet")
FIRST_FILES = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class Repo:
    """A repository: commits by sha, and branches and tags that point to them. A commit is its files."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Add a commit whose tree is exactly `files`; its name depends on everything before it."""
        parent = self.branches.get(branch) or self.branches.get("main", "")
        content = sorted((path, git_oid(data)) for path, data in files.items())
        sha = hashlib.sha1(repr((self.name, parent, len(self.commits), content)).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        if revision in self.commits:
            return revision
        return self.branches.get(revision) or self.tags.get(revision)

    @property
    def card(self) -> dict:
        readme = self.commits[self.branches["main"]].get("README.md", b"").decode()
        if len(readme) > 10_000 or not readme.startswith("---\n") or ": &" in readme:
            return {}
        with suppress(yaml.YAMLError):
            return yaml.safe_load(readme.split("---\n")[1]) or {}
        return {}


class Store:
    """All that a Hub holds, and the two addresses where it is to be had."""

    def __init__(self, endpoint: str, storage: str) -> None:
        self.lock = threading.RLock()
        self.endpoint, self.storage = endpoint, storage
        self.empty()

    def empty(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.collections: dict[str, dict] = {}
        self.large_files_elsewhere = False

    def commit(self, name: str, files: Mapping[str, bytes], **settings: bool) -> str:
        """Add files to a repository, made when it does not exist, and return the new commit."""
        with self.lock:
            repo = self.repos.setdefault(name, Repo(name, **settings))
            head = repo.commits[repo.branches["main"]] if repo.branches else FIRST_FILES
            for data in files.values():
                self.large[sha256(data)] = data
            return repo.commit({**head, **files})

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[name]
        return repo.commits[repo.resolve(revision) or ""]


def is_large(path: str) -> bool:
    return path.endswith(LARGE_SUFFIXES)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
