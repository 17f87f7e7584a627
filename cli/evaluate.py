"""`starzoo evaluate`."""

from typing import Annotated

import typer

from .options import DataOptions, EvaluateOptions, given
from .output import Output
from .parsing import with_members
from .tables import show_star


def evaluate(
    out: Output,
    star: Annotated[str, typer.Argument(metavar="STAR", help="A star: a folder or user/repo.")],
    data: DataOptions,
    measure: EvaluateOptions,
    holdout: Annotated[
        list[str] | None, typer.Option(metavar="REF", help="A model to test on, or a folder of them; repeatable.")
    ] = None,
) -> None:
    """Measure a star: its paths to sources and held-out models, and how well it predicts.

    What is not given is as it was when the star was fitted.

    Example:
        starzoo evaluate star --holdout zoo/seed-9
    """
    from starzoo.pipeline import evaluate_star

    report = evaluate_star(
        star, holdouts=with_members(holdout or []), data=given(data), evaluate=given(measure), progress=out.progress
    )
    show_star(out, report)
