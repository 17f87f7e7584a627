"""`starzoo align`."""

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .output import Output
from .tables import show_alignment


def align(
    out: Output,
    fixed: Annotated[str, typer.Argument(metavar="FIXED", help="The model that stays as it is.")],
    permutees: Annotated[list[str], typer.Argument(metavar="PERMUTEE", help="The models to bring close to it.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the aligned models.")],
    align: options.AlignOptions,
    data: options.AlignDataOptions,
    config: options.ConfigFile = None,
    overrides: options.Overrides = None,
    seed: options.Seed = None,
    reorder_classes: Annotated[bool, typer.Option("--reorder-classes", hidden=True)] = False,  # always done: accepted
) -> None:
    """Permute models so that their weights come close to those of another, without changing what they compute.

    With --dataset, models are matched by their activations and gradients on its images, and the loss at the midpoint
    is measured. Without it, they are matched by their weights (balanced-weights).

    Example:
        starzoo align zoo/seed-0 zoo/seed-1 --dataset digits --out aligned
    """
    run = options.load_run(config, overrides, seed, align=align, data=data)
    from starzoo.workflows.align import align_models

    task = run.data if "dataset" in run.data.model_fields_set else None
    size = run.data.image_size
    reports = align_models(fixed, permutees, folder, run.align, data=task, image_size=size, progress=out.progress)
    show_alignment(out, fixed, folder, reports, images=run.align.images if task else None)
