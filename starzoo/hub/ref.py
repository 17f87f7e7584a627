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
    from huggingface_hub import HfFileMetadata, ModelInfo

__all__ = ["TIMEOUT", "ModelRef", "file_metadata", "model_info"]

TIMEOUT = 10.0
"""Seconds to wait for a response of the Hub."""

_FORMS = (
    "write user/repo, user/repo@revision, user/repo/folder@revision, "
    "or the path of a folder with config.json and model.safetensors"
)


@dataclass(frozen=True)
class ModelRef:
    """A reference to a model: either an existing `folder`, or `repo` with an optional `revision` and `subfolder`."""

    folder: Path | None = None
    repo: str | None = None  # user/name
    revision: str | None = None  # a branch, tag or commit; None is the main branch
    subfolder: str = ""

    @classmethod
    def parse(cls, text: str | Path) -> ModelRef:
        """Parse `user/repo[/folder][@revision]`, the same after `hf-hub:`, or the path of a folder.

        An existing folder wins over a repository of the same name.
        """
        name = str(text)
        prefix, colon, rest = name.partition(":")
        is_hub_ref = bool(colon) and prefix.lower() in {"hf-hub", "hf_hub"}
        if not is_hub_ref and name:
            path = Path(name).expanduser()
            if path.is_dir():
                return cls(folder=path)
            if path.exists():
                raise UsageError(name, "expected a folder, got a file", hint="give the folder that holds it")
            if isinstance(text, Path) or name.startswith((".", "/", "~")):
                raise UsageError(name, "no such folder", hint=_FORMS)
            parent = next((parent for parent in path.parents if parent != Path() and parent.is_dir()), None)
            if parent is not None:
                # `zoo/seed-9` next to a folder zoo is a typing error, not a repository of a user called zoo.
                hint = f"write hf-hub:{name} if you mean the repository"
                raise UsageError(name, f"no such folder in {parent}", hint=hint)
        model_id, at, revision = (rest if is_hub_ref else name).partition("@")
        parts = split_repo(model_id)
        if parts is None or (at and not is_revision(revision)):
            raise UsageError(name, "neither a folder nor a repository", hint=_FORMS)
        repo, subfolder = parts
        return cls(repo=repo, revision=revision or None, subfolder=subfolder)

    @property
    def model_id(self) -> str:
        """The model without its revision: `user/repo`, `user/repo/folder`, or the path of a local folder."""
        if self.repo is None:
            return str(self.folder)
        return f"{self.repo}/{self.subfolder}" if self.subfolder else self.repo

    def resolve(self) -> str:
        """Return the commit of the revision, as the Hub states it or, offline, as the cache does."""
        if self.repo is None:
            raise UsageError(str(self), "expected a repository, got a local folder", hint="give a repository")
        from huggingface_hub import HfApi

        repo, revision = self.repo, self.revision
        if revision and is_commit(revision):
            return revision
        if is_offline():
            with translate_hub_errors(repo, revision):
                return HfApi().resolve_revision(repo, revision=revision).resolved
        # Not `resolve_revision`: while the Hub does not answer, it silently returns what the cache holds.
        info = model_info(repo, revision)
        sha = info.sha
        if sha is None and info.siblings:  # a mirror may state it only with each file
            sha = file_metadata(repo, info.siblings[0].rfilename, revision).commit_hash
        if not isinstance(sha, str) or not is_commit(sha):
            raise HubError(repo, "the Hub names no commit", hint="check that HF_ENDPOINT is a Hub")
        cache_ref(f"models/{repo}", revision, sha)
        return sha

    def __str__(self) -> str:
        return f"{self.model_id}@{self.revision}" if self.revision else self.model_id


def model_info(repo: str, revision: str | None, *, files: bool = False) -> ModelInfo:
    """Request the description of a repository from the Hub."""
    from huggingface_hub import HfApi

    def request() -> ModelInfo:
        try:
            return HfApi().model_info(repo, revision=revision, files_metadata=files, timeout=TIMEOUT)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            if is_client_error(error):
                raise
            raise HubError(
                repo,
                "expected the description of a repository, got another answer",
                hint="check that HF_ENDPOINT is a Hub and that the network lets you through to it",
            ) from error

    return with_retries(request, repo, revision)


def file_metadata(repo: str, path: str, revision: str | None) -> HfFileMetadata:
    """Request the headers of a file from the Hub: its commit, ETag and size."""
    from huggingface_hub import HfApi, hf_hub_url

    url = hf_hub_url(repo, path, revision=revision)
    return with_retries(lambda: HfApi().get_hf_file_metadata(url=url, timeout=TIMEOUT), repo, revision)
