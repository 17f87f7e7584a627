"""`starzoo evaluate`."""

from typing import Annotated

import typer

from .options import DataOptions, EvaluateOptions, given
from .output import Output
from .parsing import expand_refs
from .tables import show_star


def evaluate(
    out: Output,
    star: Annotated[str, typer.Argument(metavar="STAR", help="A star: a folder or user/repo.")],
    data: DataOptions,
    measure: EvaluateOptions,
    holdout: Annotated[
        list[str] | None, typer.Option(metavar="REF", help="A model to test on, or a folder of them; repeatable.")
    ] = None,
    other_star: Annotated[
        list[str] | None, typer.Option(metavar="REF", help="Another star, to connect to this one; repeatable.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=c", help="Set any value of data or evaluate, as evaluate.seed=1."),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Measure everything anew, and keep nothing.")] = False,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Measure the I-th of N shares; then run without --shard.")
    ] = None,
) -> None:
    """Measure a star: its paths to sources and held-out models, and how well it predicts.

    What is not given is as it was when the star was fitted. What was measured before is not measured again.

    Example:
        starzoo evaluate star --holdout zoo/seed-9
    """
    from starzoo.config import parse_section_overrides
    from starzoo.evaluate.evaluate import Shard
    from starzoo.workflows.evaluate import evaluate_star

    changes = parse_section_overrides(overrides or (), data=given(data), evaluate=given(measure))
    report = evaluate_star(
        star,
        holdouts=expand_refs(holdout or [], of="holdouts"),
        other_stars=other_star or [],
        use_cache=not no_cache,
        shard=Shard.parse(shard) if shard else None,
        **changes,
        progress=out.progress,
    )
    if shard:
        out.result({"shard": shard}, brief=[shard], human=[f"share {shard} is measured"])
    else:
        show_star(out, report)
