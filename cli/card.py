"""`starzoo card`."""

from pathlib import Path
from typing import Annotated

import typer

from .output import Output


def card(
    out: Output,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a star.")],
    html: Annotated[
        bool, typer.Option("--html", help="Write report.html too: the card as one page for a browser, offline.")
    ] = False,
) -> None:
    """Write the card of a star again, from its star.json.

    Example:
        starzoo card star --html
    """
    from starzoo.pipeline import render_card, render_html

    files = {"card": render_card(folder), **({"report": render_html(folder)} if html else {})}
    out.result(files, brief=[*files.values()], human=[f"{name}: {file}" for name, file in files.items()])
