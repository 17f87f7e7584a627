"""`starzoo card`."""

from pathlib import Path
from typing import Annotated

import typer

from .output import Output


def card(
    out: Output,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a star.")],
) -> None:
    """Write the card of a star again, from its star.json.

    Example:
        starzoo card star
    """
    from starzoo.pipeline import render_card

    file = render_card(folder)
    out.result({"card": file}, brief=[file], human=[f"card: {file}"])
