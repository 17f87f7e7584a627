"""`starzoo align`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import AlignOptions, ConfigOptions, DataOptions, given, load_run
from .output import Output
from .parsing import expand_refs
from .tables import show_alignment


def align(
    out: Output,
    fixed: Annotated[str, typer.Argument(metavar="FIXED", help="The model that stays as it is.")],
    permutees: Annotated[list[str], typer.Argument(metavar="PERMUTEE", help="The models to bring close to it.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the aligned models.")],
    options: AlignOptions,
    data: DataOptions,
    config: ConfigOptions,
    _reorder_classes: Annotated[bool, typer.Option("--reorder-classes", hidden=True)] = False,  # which they always are
) -> None:
    """Permute models so that their weights come close to those of another, without changing what they compute.

    With --dataset, models are matched by what they compute on its images (activations-gradients), and the loss half-way
    between them is measured; without one, by their weights alone (balanced-weights).

    Example:
        starzoo align zoo/seed-0 zoo/seed-1 --dataset digits --out aligned
    """
    run = load_run(config, align=given(options), data=given(data))
    from starzoo.workflows.align import align_models

    images = run.data if "dataset" in run.data.model_fields_set else None  # by option, file or --set
    how = run.align
    if not images and "method" not in how.model_fields_set:
        how = how.model_copy(update={"method": "balanced-weights"})
    reports = align_models(
        fixed,
        expand_refs(permutees),
        folder,
        how,
        data=images,
        progress=out.progress,
    )
    show_alignment(out, fixed, folder, reports, images=how.images if images else None)
