"""`starzoo plan`."""

from typing import Annotated

import typer

from . import options
from .options import ConfigOptions, DataOptions, StarOptions, given
from .output import Output
from .parsing import resolve_zoo
from .plan_tables import show_plan


def plan(
    out: Output,
    sources: options.Sources,
    data: DataOptions,
    star: StarOptions,
    config: ConfigOptions,
    holdout: Annotated[
        list[str] | None, typer.Option(metavar="REF", help="A model to test on, or a folder of them; repeat it.")
    ] = None,
) -> None:
    """Say what fit-star would take, before anything is spent: bytes, memory, licenses, steps.

    No weight is downloaded, and the images are not looked at. Every check of the models that needs neither is made: one
    that cannot be used with the others is refused here.

    Example:
        starzoo plan timm/resnet18.a1_in1k timm/resnet18.a2_in1k --train-size 1281167
    """
    run = options.load_run(config, data=given(data), star=given(star))
    from starzoo.workflows.plan import plan_star

    show_plan(out, plan_star(*resolve_zoo(sources, holdout), run))
