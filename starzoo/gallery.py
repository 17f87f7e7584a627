"""One page for several stars: what each is, what it was fitted on, and what it is worth."""

from __future__ import annotations

import re
from pathlib import Path

from starzoo.card import describe_data, refuse_other_card
from starzoo.errors import UsageError
from starzoo.evaluate.findings import connections, predictors
from starzoo.evaluate.measures import Evaluation
from starzoo.files import refuse_leading_out, write_text
from starzoo.markdown import load_template
from starzoo.star.manifest import MANIFEST, StarManifest, read_manifest

__all__ = ["find_stars", "write_gallery"]

_OUR_WORDS = b"page is written by `starzoo card DIR --gallery`"  # as the template has them
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def find_stars(folder: Path) -> list[Path]:
    """The stars in a folder, each in a folder of its own.

    Args:
        folder: The folder.

    Returns:
        Their folders by name.

    Raises:
        UsageError: There is none, or one lies elsewhere.
    """
    found = sorted(file.parent for file in folder.glob(f"*/{MANIFEST}"))
    if not found:
        raise UsageError(f"{folder}: no folder in it holds a {MANIFEST}", hint="put stars into it", subject=str(folder))
    for star in found:
        refuse_leading_out(star, folder)
    return found


def write_gallery(folder: Path) -> Path:
    """Write README.md into a folder of stars; every number comes from their star.json.

    Args:
        folder: The folder.

    Returns:
        The page's path.

    Raises:
        UsageError: It holds no star, or a README.md of somebody else in any of the folders.
    """
    found, page = find_stars(folder), folder / "README.md"
    for star in found:
        refuse_other_card(star)
    if page.is_file() and _OUR_WORDS not in page.read_bytes():
        raise UsageError(
            f"{page}: is no page of a gallery, and would be overwritten",
            hint="put the stars into a folder of their own, or move it away",
            subject=str(page),
        )
    stars = [_describe(star.name, read_manifest(star / MANIFEST)) for star in found]
    write_text(page, load_template("gallery.md.jinja").render(stars=stars))
    return page


def _describe(folder: str, manifest: StarManifest) -> dict[str, object]:
    """What the page says of a star: of its test images, or of the training images where no others were evaluated."""
    evaluation = manifest.evaluation or Evaluation(paths=(), qualities=())
    split = min(evaluation.splits, key=lambda split: split != "test", default=None)
    return {
        "place": f"{_UNSAFE.sub(_encode, folder)}/",
        "manifest": manifest,
        "data": describe_data(evaluation.data or manifest.config.data),
        "split": split,
        "barriers": {row.kind: row.barrier for row in connections(evaluation, split)} if split else {},
        "rows": {row.role: row for row in predictors(evaluation, split) if row.label != "most accurate source"}
        if split
        else {},
    }


def _encode(found: re.Match[str]) -> str:
    """A character as a link writes it."""
    return "".join(f"%{byte:02X}" for byte in found[0].encode())
