"""Figures that are made but not drawn: to draw those of a card takes a second, and few tests look at them."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from starzoo.files import atomic_write
from starzoo.report import plots

__all__ = ["draw_nothing", "save"]

save = plots.save
"""What draws."""


def draw_nothing() -> None:
    """Let this process write empty files instead of figures."""
    plots.save = _save_blank


def _save_blank(figure: Figure, stem: Path) -> tuple[Path, Path]:
    assert figure.axes
    png, svg = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    for file in (png, svg):
        with atomic_write(file) as draft:
            draft.write_bytes(b"")
    return png, svg
