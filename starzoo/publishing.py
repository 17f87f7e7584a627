"""Publish a star: its card says which repository it is in, and its licence is one that its sources allow."""

from __future__ import annotations

from pathlib import Path

from starzoo.card import write_card
from starzoo.errors import IncompatibleError, UsageError
from starzoo.hub.names import check_repo, split_repo
from starzoo.hub.push import PushResult, add_to_collection, push
from starzoo.licences import Licensing, combine_sources, is_identifier
from starzoo.star.manifest import MANIFEST, StarManifest, read_manifest
from starzoo.star.star import write_manifest

__all__ = ["check_licence", "publish_star"]


def publish_star(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    tag: str | None = None,
    create_pr: bool = False,
    accept_licence: str | None = None,
    collection: str | None = None,
) -> PushResult:
    """Publish a folder; a star's card is rendered first, so that its snippets name the repository.

    Args:
        folder: The folder of a star, or of any model in timm's format.
        repo: `user/name`; made when it does not exist.
        private: Whether a new repository is private.
        tag: A git tag to put on the commit.
        create_pr: Open a pull request instead of changing the main branch.
        accept_licence: The licence of the star, where a person must decide; the star keeps it.
        collection: Title of a collection for the star and those of its sources that are on the Hub.

    Returns:
        The commit.
    """
    check_repo(repo)
    sources: list[str] = []
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder / MANIFEST)
        chosen = accept_licence or manifest.chosen_licence
        check_licence(manifest, chosen)
        manifest = manifest.model_copy(update={"repo": repo, "chosen_licence": chosen})
        write_card(folder, manifest, repo)
        write_manifest(folder, manifest)
        places = [split_repo(source.repo) for source in manifest.sources if source.repo]
        sources = list(dict.fromkeys(place[0] for place in places if place))
    pushed = push(folder, repo, private=private, tag=tag, create_pr=create_pr)
    if collection:
        add_to_collection(collection, [repo, *sources], private=private)
    return pushed


def check_licence(manifest: StarManifest, accepted: str | None) -> Licensing:
    """Make sure that the star's sources allow to publish it, and that a person decided what is not clear.

    Args:
        manifest: The star.
        accepted: The licence that a person chose, or None.

    Returns:
        What the licences of the sources come to.

    Raises:
        IncompatibleError: The licences exclude each other.
        UsageError: A person must decide, or decided for less than the sources demand.
    """
    found = combine_sources(manifest.sources)
    if found.conflict:
        raise IncompatibleError(
            f"{manifest.name}: cannot be published: {found.conflict}",
            hint="fit a star on sources whose licences fit together",
            subject=manifest.name,
        )
    if found.question and accepted is None:
        raise UsageError(
            f"{manifest.name}: {found.question}",
            hint="look at the licences of its sources, choose, and add --accept-license LICENCE",
            subject="--accept-license",
        )
    if accepted is not None:
        if not is_identifier(accepted):
            raise UsageError(
                f"--accept-license {accepted!r}: no identifier of a licence",
                hint="write it as the Hub does: cc-by-nc-4.0",
                subject="--accept-license",
            )
        if not found.allows(accepted):
            raise UsageError(
                f"--accept-license {accepted}: the sources demand {found.floor}",
                hint=f"give --accept-license {found.floor}",
                subject="--accept-license",
            )
    return found
