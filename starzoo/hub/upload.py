"""Publish a folder as one commit of a repository on the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starzoo.errors import HubError, UsageError, without_password
from starzoo.files import check_inside
from starzoo.hub.error_mapping import translate_hub_errors, translate_xet_errors
from starzoo.hub.names import METRICS, PLOTS, check_repo
from starzoo.hub.offline import ONLINE_HINT, is_offline
from starzoo.hub.retry import cap_retry_after

__all__ = ["STAR_TAG", "PublishedStar", "PushResult", "add_to_collection", "list_stars", "published_files", "push"]

STAR_TAG = "starzoo"
"""The Hub tag that every star's card carries."""

_REQUIRED = ("config.json", "model.safetensors")
_OPTIONAL = ("README.md", "star.json", "permutations.safetensors")


@dataclass(frozen=True)
class PushResult:
    """The result of a push."""

    url: str  # of the commit's page
    sha: str
    files: tuple[str, ...]
    changed: bool  # False if the repository had the same content before


@dataclass(frozen=True)
class PublishedStar:
    """A star on the Hub."""

    repo: str
    downloads: int  # in the last 30 days
    likes: int
    updated: str  # YYYY-MM-DD, or empty


def published_files(folder: Path) -> tuple[str, ...]:
    """Return the names of the files that a push publishes: those of the star format only."""
    for name in _REQUIRED:
        if not (folder / name).is_file():
            raise UsageError(str(folder), f"has no {name}", hint="give a folder that starzoo wrote")
    star_files = (*PLOTS, *METRICS) if (folder / "star.json").is_file() else ()
    names = sorted(name for name in (*_REQUIRED, *_OPTIONAL, *star_files) if (folder / name).is_file())
    for name in names:
        check_inside(folder / name, folder)
        if (folder / name).stat().st_nlink > 1:
            raise UsageError(
                str(folder / name), "is a hard link, perhaps to a private file", hint="put a copy of the file there"
            )
    return tuple(names)


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    message: str | None = None,
    tag: str | None = None,
    create_pr: bool = False,
) -> PushResult:
    """Publish a folder in one commit on top of the current head; the same content again makes no commit."""
    check_repo(repo_id)
    if tag and create_pr:
        raise UsageError("--tag", "and --create-pr exclude each other", hint="tag it after the merge")
    names = published_files(folder)

    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(library_name="starzoo")
    _require_online(repo_id)
    with translate_hub_errors(repo_id), translate_xet_errors(repo_id):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        head = api.model_info(repo_id).sha
        tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags} if tag else {}
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, folder / name) for name in names],
            commit_message=message or f"Publish {folder.resolve().name} with starzoo",
            parent_commit=head,
            create_pr=create_pr,
        )
        if tag and tag not in tags:
            api.create_tag(repo_id, tag=tag, revision=commit.oid)
    if tag and tags.get(tag, commit.oid) != commit.oid:
        raise UsageError(
            repo_id,
            f"pushed as {commit.oid[:12]}, but the tag {tag!r} stands on {tags[tag][:12]}",
            hint="choose another tag",
        )
    return PushResult(
        without_password(commit.pr_url or commit.commit_url), commit.oid, names, changed=commit.oid != head
    )


def add_to_collection(title: str, repos: Sequence[str], *, private: bool = False) -> str:
    """Add repositories to a collection of the user and return its URL; the same call again changes nothing."""
    from huggingface_hub import HfApi

    api = HfApi(library_name="starzoo")
    _require_online(f"the collection {title!r}")
    with translate_hub_errors(f"the collection {title!r}"):
        collection = api.create_collection(title, private=private, exists_ok=True)
        for repo in repos:
            api.add_collection_item(collection.slug, repo, "model", exists_ok=True)
    return collection.url


def list_stars(author: str | None = None) -> list[PublishedStar]:
    """List the stars on the Hub, which their tag identifies.

    Args:
        author: The user or organization whose stars are listed; None for all.

    Returns:
        The stars in the Hub's order.
    """
    from huggingface_hub import HfApi

    _require_online(author or "the Hub")
    with translate_hub_errors(author or "the Hub"):
        return [
            PublishedStar(
                repo=model.id,
                downloads=model.downloads or 0,
                likes=model.likes or 0,
                updated=model.last_modified.date().isoformat() if model.last_modified else "",
            )
            for model in HfApi().list_models(filter=STAR_TAG, author=author, full=True)
        ]


def _require_online(subject: str) -> None:
    """Raise a `HubError` in offline mode, and bound the time that the Hub can ask to wait."""
    if is_offline():
        raise HubError(subject, "cannot reach the Hub in offline mode", hint=ONLINE_HINT)
    cap_retry_after()
