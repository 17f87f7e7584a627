"""References to models: a Hub repository at a revision, or a local folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from starzoo.errors import HubError, UsageError
from starzoo.hub.error_mapping import is_client_error, translate_hub_errors
from starzoo.hub.names import is_commit, is_revision, split_repo
from starzoo.hub.offline import cache_ref, is_offline
from starzoo.hub.retry import with_retries

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

__all__ = ["TIMEOUT", "ModelRef", "model_info"]

TIMEOUT = 10.0
"""Seconds to wait for an answer of the Hub."""

_FORMS = (
    "write user/repo, user/repo@revision, user/repo/folder@revision, "
    "or the path of a folder with config.json and model.safetensors"
)


@dataclass(frozen=True)
class ModelRef:
    """Which model: either `folder`, or `repo` with an optional `revision` and an optional folder inside of it.

    Attributes:
        folder: An existing local folder, or None.
        repo: A repository id `user/name` on the Hub, or None.
        revision: A branch, tag or commit of `repo`; None stands for its main branch.
        inside: The folder of `repo` that holds the model, as `sub/folder`; empty for the root.
    """

    folder: Path | None = None
    repo: str | None = None
    revision: str | None = None
    subfolder: str = ""

    @classmethod
    def parse(cls, text: str | Path) -> ModelRef:
        """Read `user/repo[/folder][@revision]`, the same after `hf-hub:`, or the path of a folder.

        An existing folder wins over a repository of the same name.
        """
        name = str(text)
        prefix, colon, rest = name.partition(":")
        forced = bool(colon) and prefix.lower() in {"hf-hub", "hf_hub"}
        if not forced and name:
            path = Path(name).expanduser()
            if path.is_dir():
                return cls(folder=path)
            if path.exists():
                raise UsageError(name, "is a file, not a folder", hint="give the folder that holds it")
            if isinstance(text, Path) or name.startswith((".", "/", "~")):
                raise UsageError(name, "there is no such folder", hint=_FORMS)
            near = next((parent for parent in path.parents if parent != Path() and parent.is_dir()), None)
            if near is not None:
                # `zoo/seed-9` beside a folder zoo is a slip of the pen, not a repository of a user called zoo.
                hint = f"write hf-hub:{name} if the repository is meant"
                raise UsageError(name, f"there is no such folder in {near}", hint=hint)
        place, at, revision = (rest if forced else name).partition("@")
        found = split_repo(place)
        if found is None or (at and not is_revision(revision)):
            raise UsageError(name, "neither a folder nor a repository", hint=_FORMS)
        return cls(repo=found[0], revision=revision or None, subfolder=found[1])

    @property
    def model_id(self) -> str:
        """The model without its revision: `user/repo`, `user/repo/folder`, or the path of a local folder."""
        if self.repo is None:
            return str(self.folder)
        return f"{self.repo}/{self.subfolder}" if self.subfolder else self.repo

    def resolve(self) -> str:
        """Ask the Hub, once, which commit the revision is at; offline, what the cache remembers."""
        if self.repo is None:
            raise UsageError(str(self), "a local folder has no commit", hint="give a repository")
        from huggingface_hub import HfApi, hf_hub_url

        repo, revision = self.repo, self.revision
        if revision and is_commit(revision):
            return revision
        if is_offline():
            with translate_hub_errors(repo, revision):
                return HfApi().resolve_revision(repo, revision=revision).resolved
        # Not `resolve_revision`: where the Hub does not answer, it takes what the cache remembers and says nothing.
        info = model_info(repo, revision)
        sha = info.sha
        if sha is None and info.siblings:  # a mirror may say it only with each file
            url = hf_hub_url(repo, info.siblings[0].rfilename, revision=revision)
            sha = with_retries(
                lambda: HfApi().get_hf_file_metadata(url=url, timeout=TIMEOUT), repo, revision
            ).commit_hash
        if not isinstance(sha, str) or not is_commit(sha):
            raise HubError(repo, "the Hub names no commit", hint="is HF_ENDPOINT a Hub?")
        cache_ref(f"models/{repo}", revision, sha)
        return sha

    def __str__(self) -> str:
        return f"{self.model_id}@{self.revision}" if self.revision else self.model_id


def model_info(repo: str, revision: str | None, *, files: bool = False) -> ModelInfo:
    """Ask the Hub what it knows about a repository."""
    from huggingface_hub import HfApi

    def ask() -> ModelInfo:
        try:
            return HfApi().model_info(repo, revision=revision, files_metadata=files, timeout=TIMEOUT)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            if is_client_error(error):
                raise
            raise HubError(
                repo,
                "expected what a Hub knows about a repository, got something else",
                hint="is HF_ENDPOINT a Hub, and does the network let you through to it?",
            ) from error

    return with_retries(ask, repo, revision)
