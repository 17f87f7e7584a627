"""The name of a model: a repository on the Hub at some revision, or a local folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from starzoo.errors import UsageError
from starzoo.hub.failures import hub_failures
from starzoo.hub.names import is_repo

__all__ = ["ModelRef"]

_REVISION = re.compile(r"[\w./-]{1,200}")
_FORMS = "write user/repo, user/repo@revision, or the path of a folder with config.json and model.safetensors"


@dataclass(frozen=True)
class ModelRef:
    """Which model: either `folder`, or `repo` with an optional `revision`.

    Attributes:
        folder: An existing local folder, or None.
        repo: A repository id `user/name` on the Hub, or None.
        revision: A branch, tag or commit of `repo`; None stands for its main branch.
    """

    folder: Path | None = None
    repo: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str | Path) -> ModelRef:
        """Read `user/repo[@revision]`, `hf-hub:user/repo[@revision]`, or the path of a folder.

        An existing folder wins over a repository of the same name.

        Args:
            text: What the user wrote.

        Returns:
            The reference; a folder exists, a repository may not.

        Raises:
            UsageError: The text is neither an existing folder nor the name of a repository.
        """
        name = str(text)
        prefix, colon, rest = name.partition(":")
        forced = bool(colon) and prefix.lower() in {"hf-hub", "hf_hub"}
        if not forced and name:
            path = Path(name).expanduser()
            if path.is_dir():
                return cls(folder=path)
            if path.exists():
                raise UsageError(f"{name}: is a file, not a folder", hint="give the folder that holds it", subject=name)
            if isinstance(text, Path) or name.startswith((".", "/", "~")) or name.partition("@")[0].count("/") > 1:
                raise UsageError(f"{name}: there is no such folder", hint=_FORMS, subject=name)
            if path.parent != Path() and path.parent.is_dir():
                # `zoo/seed-9` beside a folder zoo is a slip of the pen, not a repository of a user called zoo.
                hint = f"write hf-hub:{name} if the repository is meant"
                raise UsageError(f"{name}: there is no such folder in {path.parent}", hint=hint, subject=name)
        repo, at, revision = (rest if forced else name).partition("@")
        if not is_repo(repo) or (at and not _REVISION.fullmatch(revision)) or ".." in name:
            raise UsageError(f"{name!r}: neither a folder nor a repository", hint=_FORMS, subject=name)
        return cls(repo=repo, revision=revision or None)

    def resolve(self) -> str:
        """Ask the Hub, once, which commit the revision is at; offline, what the cache remembers.

        Returns:
            The commit's 40 hexadecimal digits.

        Raises:
            UsageError: This is a local folder.
        """
        if self.repo is None:
            raise UsageError(f"{self}: a local folder has no commit", hint="give a repository", subject=str(self))
        from huggingface_hub import HfApi

        with hub_failures(self.repo, self.revision):
            return HfApi().resolve_revision(self.repo, revision=self.revision).resolved

    def __str__(self) -> str:
        if self.repo is None:
            return str(self.folder)
        return f"{self.repo}@{self.revision}" if self.revision else self.repo
