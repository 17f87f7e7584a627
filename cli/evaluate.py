"""`starzoo evaluate`."""

from typing import Annotated

import typer

from .options import DataOptions, EvaluateOptions, ReorderClasses, given
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
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=c", help="Set any value of data or evaluate, as evaluate.seed=1."),
    ] = None,
    reorder_classes: ReorderClasses = False,
) -> None:
    """Measure a star: its paths to sources and held-out models, and how well it predicts.

    What is not given is as it was when the star was fitted.

    Example:
        starzoo evaluate star --holdout zoo/seed-9
    """
    from starzoo.config import load_changes
    from starzoo.pipeline import evaluate_star

    changes = load_changes(overrides or (), data=given(data), evaluate=given(measure))
    report = evaluate_star(
        star, holdouts=with_members(holdout or []), reorder_classes=reorder_classes, **changes, progress=out.progress
    )
    show_star(out, report)
