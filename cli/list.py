"""`starzoo list`."""

from typing import Annotated

import typer

from .output import Output, Table


def list(  # named as the command is
    out: Output,
    author: Annotated[str | None, typer.Option(help="Only stars of this user or organization.")] = None,
) -> None:
    """List the stars that are published on the Hub.

    Example:
        starzoo list --author me
    """
    from starzoo.hub.upload import list_stars

    stars = list_stars(author)
    none = f"no star is published by {author}" if author else "no star is published"
    rows = [[star.repo, star.updated, f"{star.downloads:,}", f"{star.likes:,}"] for star in stars]
    out.result(
        {"stars": stars},
        brief=[star.repo for star in stars],
        human=[Table("Stars on the Hub", ["repository", "updated", "downloads", "likes"], rows) if stars else none],
    )
