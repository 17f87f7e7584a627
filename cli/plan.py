"""`starzoo plan`."""

from typing import Annotated

import typer

from . import options
from .output import Output
from .plan_tables import show_plan


def plan(
    out: Output,
    sources: options.Sources,
    data: options.DataOptions,
    star: options.StarOptions,
    holdouts: options.Holdouts = None,
    preset: options.Preset = None,
    config: options.ConfigFile = None,
    overrides: options.Overrides = None,
    seed: options.Seed = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also load all models and images, and time some steps on this machine.")
    ] = False,
) -> None:
    """Say what fit-star would take: bytes to download, memory, licenses and steps.

    Without --measure no weights are downloaded and no images are read. Models that cannot be used together are refused.

    Example:
        starzoo plan timm/resnet18.a1_in1k timm/resnet18.a2_in1k --train-size 1281167
    """
    from starzoo.workflows.plan import plan_star

    run = options.load_run(config, overrides, seed, preset, data=data, star=star)
    planned, trial = plan_star(sources, holdouts or [], run), None
    if measure:
        from starzoo.workflows.trial import measure_trial

        trial = measure_trial(sources, holdouts or [], run, progress=out.progress)
    show_plan(out, planned, trial)
