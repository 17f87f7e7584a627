"""One page for several stars."""

from __future__ import annotations

import re
from pathlib import Path

from starzoo.errors import UsageError
from starzoo.evaluate.results import Evaluation
from starzoo.files import check_inside, write_text
from starzoo.report.card import check_overwritable, describe_data
from starzoo.report.markdown import check_generated, load_template
from starzoo.report.summary import summarize_paths, summarize_predictors
from starzoo.star.manifest import MANIFEST, StarManifest, read_manifest

__all__ = ["list_star_folders", "write_gallery"]

_GENERATED_MARKER = b"page is written by `starzoo card DIR --gallery`"  # in the template
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def list_star_folders(folder: Path) -> list[Path]:
    """List the folders of stars in a folder."""
    stars = sorted(file.parent for file in folder.glob(f"*/{MANIFEST}"))
    if not stars:
        raise UsageError(str(folder), f"no folder in it holds a {MANIFEST}", hint="put stars into it")
    for star in stars:
        check_inside(star, folder)
    return stars


def write_gallery(folder: Path) -> Path:
    """Write README.md into a folder of stars; every number comes from their star.json."""
    folders, page = list_star_folders(folder), folder / "README.md"
    for star in folders:
        check_overwritable(star)
    check_generated(page, _GENERATED_MARKER)
    stars = [_describe(star.name, read_manifest(star / MANIFEST)) for star in folders]
    write_text(page, load_template("gallery.md.jinja").render(stars=stars))
    return page


def _describe(folder: str, manifest: StarManifest) -> dict[str, object]:
    """The values of a star's rows: on the test images, or on the training images where no others were evaluated."""
    evaluation = manifest.evaluation or Evaluation(paths=(), qualities=())
    split = min(evaluation.splits, key=lambda split: split != "test", default=None)
    return {
        "link": f"{_UNSAFE.sub(_percent_encode, folder)}/",
        "manifest": manifest,
        "data": describe_data(evaluation.data or manifest.config.data),
        "split": split,
        "barriers": {row.kind: row.barrier for row in summarize_paths(evaluation, split)} if split else {},
        "rows": {
            row.role: row for row in summarize_predictors(evaluation, split) if row.label != "most accurate source"
        }
        if split
        else {},
    }


def _percent_encode(character: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in character[0].encode())
