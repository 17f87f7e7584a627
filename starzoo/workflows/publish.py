"""Publish a star, under a license that its sources permit."""

from __future__ import annotations

from pathlib import Path

from starzoo.errors import IncompatibleError, UsageError
from starzoo.hub.names import check_repo, split_repo
from starzoo.hub.upload import PushResult, add_to_collection, published_files, push
from starzoo.models.licenses import is_identifier, license_of_sources
from starzoo.models.safetensors_header import read_header
from starzoo.models.timm_folder import CONFIG_FILE, WEIGHTS_FILE
from starzoo.report.card import write_card
from starzoo.star.manifest import MANIFEST, StarManifest, read_manifest
from starzoo.star.star import write_manifest
from starzoo.strict_json import read_json

__all__ = ["check_license", "publish_star"]


def publish_star(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    tag: str | None = None,
    create_pr: bool = False,
    accept_license: str | None = None,
    collection: str | None = None,
) -> PushResult:
    """Publish a folder; the card of a star is rendered first, so that its code names the repository.

    Args:
        folder: The folder of a star, or of any model in timm's format.
        repo: `user/name`; created if it does not exist.
        private: Whether a new repository is private.
        tag: A git tag to put on the commit.
        create_pr: Open a pull request instead of changing the main branch.
        accept_license: The license of the star, where its sources leave that open; recorded in star.json.
        collection: Title of a collection for the star and those of its sources that are on the Hub.

    Returns:
        The commit.
    """
    check_repo(repo)
    published_files(folder)
    read_json(folder / CONFIG_FILE)
    read_header(folder / WEIGHTS_FILE)
    sources: list[str] = []
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder / MANIFEST)
        chosen = accept_license or manifest.chosen_license
        check_license(manifest, chosen)
        manifest = manifest.model_copy(update={"repo": repo, "chosen_license": chosen})
        write_card(folder, manifest, repo)
        write_manifest(folder, manifest)
        parts = [split_repo(source.repo) for source in manifest.sources if source.repo]
        sources = list(dict.fromkeys(part[0] for part in parts if part))
    pushed = push(folder, repo, private=private, tag=tag, create_pr=create_pr)
    if collection:
        add_to_collection(collection, [repo, *sources], private=private)
    return pushed


def check_license(manifest: StarManifest, accepted: str | None) -> None:
    """Make sure that the sources permit to publish a star, under the `accepted` license where they leave it open."""
    licensing = license_of_sources(manifest.sources)
    if licensing.conflict:
        raise IncompatibleError(
            manifest.name,
            f"cannot be published: {licensing.conflict}",
            hint="fit a star on sources whose licenses fit together",
        )
    if accepted is None:
        if licensing.needs_decision:
            raise UsageError(
                "--accept-license",
                f"{manifest.name}: {licensing.needs_decision}",
                hint="look at the licenses of its sources, choose, and add --accept-license LICENSE",
            )
    elif not is_identifier(accepted):
        raise UsageError(
            "--accept-license",
            f"expected the identifier of a license, got {accepted!r}",
            hint="write it as the Hub does: cc-by-nc-4.0",
        )
    elif not licensing.permits(accepted):
        raise UsageError(
            "--accept-license",
            f"{accepted}: the sources demand {licensing.minimum}",
            hint=f"give --accept-license {licensing.minimum}",
        )
