"""`starzoo fit-star`."""

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .output import Output
from .parsing import resolve_zoo
from .plan_tables import show_plan
from .tables import show_star


def fit_star(
    out: Output,
    sources: options.Sources,
    folder: Annotated[Path, typer.Option("--out", help="Folder of the star; a run that was cut off goes on here.")],
    data: options.DataOptions,
    star: options.StarOptions,
    align: options.AlignOptions,
    measure: options.EvaluateOptions,
    config: options.ConfigOptions,
    resume: options.ResumeOptions,
    publish: options.PublishOptions,
    holdout: Annotated[
        list[str] | None, typer.Option(metavar="REF", help="A model to test on, or a folder of them; repeat it.")
    ] = None,
    title: Annotated[str | None, typer.Option("--name", help="Title of the star's card.")] = None,
    keep_weak_sources: Annotated[
        bool, typer.Option("--keep-weak-sources", help="Use sources that are far worse than the others.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would take, as `plan` does.")] = False,
) -> None:
    """Find the star of several models, test it on held-out models, and write it with its card.

    The same command again goes on where it was cut off.

    Example:
        starzoo fit-star zoo/seed-{0..7} --holdout={zoo/seed-8,zoo/seed-9} --out star
    """
    sections = {"data": data, "align": align, "star": star, "evaluate": measure}
    run = options.load_run(config, **{name: options.given(section) for name, section in sections.items()})
    if dry_run:
        from starzoo.workflows.plan import plan_star

        return show_plan(out, plan_star(*resolve_zoo(sources, holdout), run))
    from starzoo.workflows.fit import fit_star as run_fit_star

    report = run_fit_star(
        *resolve_zoo(sources, holdout),
        run,
        folder,
        name=title,
        keep_weak_sources=keep_weak_sources,
        **{**vars(resume), **vars(publish)},
        progress=out.progress,
    )
    return show_star(out, report)
