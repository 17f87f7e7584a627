"""Render cards, pages and galleries from star.json."""

from __future__ import annotations

from pathlib import Path

from starzoo.report.card import write_card
from starzoo.report.gallery import list_star_folders, write_gallery
from starzoo.report.html import write_report
from starzoo.star.manifest import MANIFEST, read_manifest

__all__ = ["render_card", "render_gallery", "render_html"]


def render_card(folder: Path) -> Path:
    """Write a star's card, plots and tables again from its star.json.

    Args:
        folder: The star's folder.

    Returns:
        The card.
    """
    manifest = read_manifest(folder / MANIFEST)
    return write_card(folder, manifest, manifest.repo)


def render_html(folder: Path) -> Path:
    """Write a star's card as one self-contained HTML page, from its star.json."""
    manifest = read_manifest(folder / MANIFEST)
    return write_report(folder, manifest, manifest.repo)


def render_gallery(folder: Path) -> list[Path]:
    """Write the cards of all stars in a folder again, and one page for all."""
    page = write_gallery(folder)
    return [page, *map(render_card, list_star_folders(folder))]
