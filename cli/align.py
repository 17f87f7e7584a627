"""`starzoo align`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import AlignOptions, ConfigOptions, given, load_run
from .output import Output, Table
from .parsing import with_members


def align(
    out: Output,
    fixed: Annotated[str, typer.Argument(metavar="FIXED", help="The model that stays as it is.")],
    permutees: Annotated[list[str], typer.Argument(metavar="PERMUTEE", help="The models to bring close to it.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the aligned models.")],
    options: AlignOptions,
    config: ConfigOptions,
) -> None:
    """Permute models so that their weights come close to those of another, without changing what they compute.

    Example:
        starzoo align zoo/seed-0 zoo/seed-1 --out aligned
    """
    run = load_run(config, align=given(options))
    from starzoo.alignment import align_models

    reports = align_models(fixed, with_members(permutees), folder, run.align, progress=out.progress)
    rows = [
        (
            report.name,
            f"{report.distance_before:.4f}",
            f"{report.distance_after:.4f}",
            f"{report.distance_after / report.distance_before:.1%}" if report.distance_before else "",
            f"{report.sweeps:g}",
        )
        for report in reports
    ]
    columns = "permutee", "before", "after", "left", "sweeps"
    out.result(
        {"fixed": fixed, "aligned": [vars(report) for report in reports]},
        brief=[report.folder for report in reports],
        human=[Table("Euclidean distance to the fixed model", columns, rows), f"aligned models: {folder}"],
    )
