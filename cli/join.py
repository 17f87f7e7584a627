"""`starzoo join`."""

from typing import Annotated

import typer

from . import options
from .output import Output
from .tables import show_joined


def join(
    out: Output,
    star: options.Star,
    ref: Annotated[str, typer.Argument(metavar="REF", help="A model that the star never saw.")],
    data: options.StarDataOptions,
) -> None:
    """Align a model to a star and measure the path between them: does the model belong to the star domain?

    The sources of the star are not needed.

    Example:
        starzoo join me/star-resnet18 zoo/seed-9 --dataset digits
    """
    from starzoo.workflows.predict import join_star

    show_joined(out, join_star(star, ref, data=data, progress=out.progress))
