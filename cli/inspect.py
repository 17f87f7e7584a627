"""`starzoo inspect`."""

from typing import Annotated

import typer

from starzoo.errors import NumericalError

from . import options
from .inspect_tables import show_inspection, why_it_failed
from .output import Output
from .parsing import parse_model_args


def inspect(
    out: Output,
    ref_or_arch: Annotated[str, typer.Argument(metavar="REF_OR_ARCH", help="A model, or a timm architecture.")],
    model_args: options.ModelArgs = None,
    image_size: options.ImageSize = None,
    verify: Annotated[bool, typer.Option("--verify", help="Permute at random and compare the outputs.")] = False,
    groups: Annotated[bool, typer.Option("--groups", help="List every group.")] = False,
    why: Annotated[str | None, typer.Option(metavar="PARAM:AXIS", help="Explain one axis of one tensor.")] = None,
    free_output: Annotated[
        bool, typer.Option("--free-output", help="Also permute the outputs, for example those of an embedding.")
    ] = False,
) -> None:
    """Find the permutation symmetries of a model by tracing it.

    The exit code is 6 if the check of --verify fails.

    Example:
        starzoo inspect vit_tiny_patch16_224 --verify --why blocks.0.attn.qkv.weight:0
    """
    from starzoo.workflows.inspect import inspect_model

    report = inspect_model(
        ref_or_arch,
        model_args=parse_model_args(model_args),
        image_size=image_size,
        pin_output=not free_output,
        verify=verify,
        why=why,
    )
    show_inspection(out, report, groups=groups)
    if report.verify and report.groups and not report.verify["passed"]:
        raise NumericalError(
            ref_or_arch,
            f"the check FAILED: {why_it_failed(report.verify)}",
            hint="do not align models of this architecture, and report it",
        )
