"""`starzoo fit-star`."""

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .output import Output
from .plan_tables import show_plan
from .tables import show_star


def fit_star(
    out: Output,
    sources: options.Sources,
    folder: Annotated[Path, typer.Option("--out", help="Folder of the star, and of the run's checkpoints.")],
    data: options.DataOptions,
    star: options.StarOptions,
    align: options.AlignOptions,
    evaluate: options.EvaluateOptions,
    holdouts: options.Holdouts = None,
    preset: options.Preset = None,
    config: options.ConfigFile = None,
    overrides: options.Overrides = None,
    seed: options.Seed = None,
    title: Annotated[str | None, typer.Option("--name", help="Title of the star's card.")] = None,
    keep_weak_sources: Annotated[
        bool, typer.Option("--keep-weak-sources", help="Use sources that are far worse than the others.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the fit would take, like `starzoo plan`.")
    ] = False,
    override: Annotated[
        bool,
        typer.Option(
            "--override",
            help="Resume from checkpoints of another configuration; the change is recorded in star.json.",
            rich_help_panel="Resuming",
        ),
    ] = False,
    allow_world_size_change: Annotated[
        bool,
        typer.Option(
            "--allow-world-size-change",
            help="Resume with another number of processes; the change is recorded in star.json.",
            rich_help_panel="Resuming",
        ),
    ] = False,
    push_to: Annotated[
        str | None,
        typer.Option(metavar="REPO", help="Publish the star here, as user/name.", rich_help_panel="Publishing"),
    ] = None,
    private: options.Private = False,
    accept_license: options.AcceptLicense = None,
) -> None:
    """Find the star of several models, test it on held-out models, and write it with its card.

    Re-run the same command to resume an interrupted run.

    Example:
        starzoo fit-star zoo/seed-{0..7} --holdout={zoo/seed-8,zoo/seed-9} --out star
    """
    runtime = {"keep_weak_sources": keep_weak_sources or None}
    run = options.load_run(
        config, overrides, seed, preset, data=data, align=align, star=star, evaluate=evaluate, runtime=runtime
    )
    if dry_run:
        from starzoo.workflows.plan import plan_star

        return show_plan(out, plan_star(sources, holdouts or [], run))
    from starzoo.workflows.fit import PublishOptions, ResumeOptions
    from starzoo.workflows.fit import fit_star as run_fit_star

    result = run_fit_star(
        sources,
        holdouts or [],
        run,
        folder,
        resume=ResumeOptions(override=override, allow_world_size_change=allow_world_size_change),
        publish=PublishOptions(name=title, push_to=push_to, private=private, accept_license=accept_license),
        progress=out.progress,
    )
    return show_star(out, result)
