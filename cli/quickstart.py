"""`starzoo quickstart`."""

from pathlib import Path
from typing import Annotated

import typer

from .output import Output
from .tables import show_star


def quickstart(
    out: Output,
    folder: Annotated[Path, typer.Option("--out", help="Folder for the zoo and the star.")] = Path("quickstart"),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the star; the zoo is always the same.")] = 0,
) -> None:
    """Train a small zoo on the embedded digits, fit its star, and prove it on models that it never saw.

    Needs no internet connection, and a few minutes on two cores.

    Example:
        starzoo quickstart --out quickstart
    """
    from starzoo.workflows.quickstart import QUICKSTART_HOLDOUTS, QUICKSTART_SOURCES
    from starzoo.workflows.quickstart import quickstart as run_quickstart

    networks = QUICKSTART_SOURCES + QUICKSTART_HOLDOUTS
    out.note(
        f"trains {networks} small networks on images of digits, fits a star of {QUICKSTART_SOURCES} of them, and tests "
        f"it on the other {QUICKSTART_HOLDOUTS}; this takes a few minutes on two cores"
    )
    result = run_quickstart(folder, seed=seed, progress=out.progress)
    show_star(
        out,
        result,
        next_steps=[
            f"starzoo verify {result.folder}",
            f"starzoo card {result.folder} --html",
            "starzoo plan MODEL MODEL …",
        ],
    )
