"""`starzoo fit-star`."""

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .options import AlignOptions, ConfigOptions, DataOptions, EvaluateOptions, ReorderClasses, StarOptions, given
from .output import Output
from .parsing import read_zoo
from .tables import show_star


def fit_star(
    out: Output,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Models, folders of members, or a zoo file.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder of the star; a run that was cut off goes on here.")],
    data: DataOptions,
    star: StarOptions,
    align: AlignOptions,
    measure: EvaluateOptions,
    config: ConfigOptions,
    holdout: Annotated[
        list[str] | None, typer.Option(metavar="REF", help="A model to test on, or a folder of them; repeatable.")
    ] = None,
    title: Annotated[str | None, typer.Option("--name", help="Title of the star's card.")] = None,
    push_to: Annotated[str | None, typer.Option(metavar="REPO", help="Publish the star here, as user/name.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    reorder_classes: ReorderClasses = False,
    override: Annotated[
        bool, typer.Option("--override", help="Go on from checkpoints of another configuration, which is noted.")
    ] = False,
    allow_world_size_change: Annotated[
        bool, typer.Option("--allow-world-size-change", help="Go on with another number of processes, which is noted.")
    ] = False,
) -> None:
    """Find the star of several models, test it on held-out models, and write it with its card.

    The same command again goes on where it was cut off.

    Example:
        starzoo fit-star zoo/seed-{0..7} --holdout zoo/seed-8 --out star
    """
    run = options.load_run(config, data=given(data), align=given(align), star=given(star), evaluate=given(measure))
    from starzoo.pipeline import fit_star as run_fit_star

    report = run_fit_star(
        *read_zoo(sources, holdout),
        run,
        folder,
        name=title,
        push_to=push_to,
        private=private,
        reorder_classes=reorder_classes,
        override=override,
        allow_world_size_change=allow_world_size_change,
        progress=out.progress,
    )
    show_star(out, report)
