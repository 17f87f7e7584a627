"""`starzoo join`."""

from typing import Annotated

import typer

from .options import DataOptions, given
from .output import Output
from .tables import show_joined


def join(
    out: Output,
    star: Annotated[str, typer.Argument(metavar="STAR", help="A star: a folder or user/repo.")],
    ref: Annotated[str, typer.Argument(metavar="REF", help="A model that the star never saw.")],
    data: DataOptions,
) -> None:
    """Align a model to a star and measure the path between the two: does it belong to the star domain?

    No source of the star is needed. What is not given of the data set is as it was when the star was fitted.

    Example:
        starzoo join me/star-resnet18 zoo/seed-9 --dataset digits
    """
    from starzoo.workflows.predict import join_star

    joined = join_star(star, ref, data=given(data), progress=out.progress)
    show_joined(out, joined)
