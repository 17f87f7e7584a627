"""`starzoo evaluate`."""

from typing import Annotated

import typer

from starzoo.config import parse_section_overrides

from . import options
from .output import Output
from .tables import show_star


def evaluate(
    out: Output,
    star: options.Star,
    data: options.StarDataOptions,
    evaluate: options.StarEvaluateOptions,
    holdouts: options.Holdouts = None,
    other_stars: Annotated[
        list[str] | None,
        typer.Option("--other-star", metavar="REF", help="Another star, to connect to this one. Repeatable."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="a.b=c", help="Set any value of data or evaluate, as evaluate.seed=1. Repeatable."
        ),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Measure everything again, and cache nothing.")] = False,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Measure part I of N only; after all parts, run without --shard."),
    ] = None,
) -> None:
    """Measure a star: its paths to sources and held-out models, and how well it predicts.

    Options that are not given are as in the star's own configuration. Cached results are not measured again.

    Example:
        starzoo evaluate star --holdout zoo/seed-9
    """
    from starzoo.evaluate.evaluate import Shard
    from starzoo.workflows.evaluate import evaluate_star

    changes = parse_section_overrides(overrides or (), data=data, evaluate=evaluate)
    result = evaluate_star(
        star,
        holdouts=holdouts or [],
        other_stars=other_stars or [],
        use_cache=not no_cache,
        shard=Shard.parse(shard) if shard else None,
        **changes,
        progress=out.progress,
    )
    if shard:
        out.result({"shard": shard}, brief=[shard], human=[f"part {shard} is measured"])
    else:
        show_star(out, result)
