"""`starzoo card`."""

from pathlib import Path
from typing import Annotated

import typer

from .output import Output


def card(
    out: Output,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a star.")],
    html: Annotated[
        bool, typer.Option("--html", help="Also write report.html, the card as one page that a browser shows offline.")
    ] = False,
    gallery: Annotated[
        bool, typer.Option("--gallery", help="DIR holds several stars: write all of their cards and an overview.")
    ] = False,
) -> None:
    """Write the card of a star again from its star.json.

    Example:
        starzoo card star --html
    """
    from starzoo.errors import UsageError
    from starzoo.workflows.cards import render_card, render_gallery, render_html

    if html and gallery:
        raise UsageError("--html", "--gallery writes no HTML", hint="give --html for one star")
    if gallery:
        page, *cards = render_gallery(folder)
        lines = [f"gallery: {page}", *(f"card: {card}" for card in cards)]
        out.result({"gallery": page, "cards": cards}, brief=[page], human=lines)
        return
    files = {"card": render_card(folder), **({"report": render_html(folder)} if html else {})}
    out.result(files, brief=[*files.values()], human=[f"{name}: {file}" for name, file in files.items()])
