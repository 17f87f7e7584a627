"""`starzoo plan`."""

from . import options
from .output import Output
from .plan_tables import show_plan


def plan(
    out: Output,
    sources: options.Sources,
    data: options.DataOptions,
    star: options.StarOptions,
    holdouts: options.Holdouts = None,
    config: options.ConfigFile = None,
    overrides: options.Overrides = None,
    seed: options.Seed = None,
) -> None:
    """Say what fit-star would take: bytes to download, memory, licenses and steps.

    No weights are downloaded and no images are read. Models that cannot be used together are refused.

    Example:
        starzoo plan timm/resnet18.a1_in1k timm/resnet18.a2_in1k --train-size 1281167
    """
    from starzoo.workflows.plan import plan_star

    run = options.load_run(config, overrides, seed, data=data, star=star)
    show_plan(out, plan_star(sources, holdouts or [], run))
