"""`starzoo inspect`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from starzoo.errors import NumericalError

from .options import ImageSize, ModelArgs
from .output import Output, Table
from .parsing import parse_model_args

if TYPE_CHECKING:
    from starzoo.inspection import Inspection


def inspect(
    out: Output,
    ref_or_arch: Annotated[str, typer.Argument(metavar="REF_OR_ARCH", help="A model, or a timm architecture.")],
    model_args: ModelArgs = None,
    image_size: ImageSize = None,
    verify: Annotated[bool, typer.Option("--verify", help="Permute at random and compare the outputs.")] = False,
    groups: Annotated[bool, typer.Option("--groups", help="List every group.")] = False,
) -> None:
    """Find the permutation symmetries of a model by tracing it.

    Where the check fails, the exit code is 6.

    Example:
        starzoo inspect vit_tiny_patch16_224 --verify
    """
    from starzoo.inspection import inspect_model

    found = inspect_model(ref_or_arch, model_args=parse_model_args(model_args), image_size=image_size, verify=verify)
    rows = [(group, str(size), outer or "", str(axes)) for group, size, outer, axes in found.table]
    table = Table("Groups", ("group", "size", "within", "axes"), rows)
    human: list[Table | str] = [f"{found.architecture}: {_diagnostics(found)}", *([table] if groups else [])]
    out.result(vars(found), brief=[found.groups], human=human)
    if found.verify and not found.verify["passed"]:
        raise NumericalError(
            f"{found.architecture}: the check FAILED: {_failure(found.verify)}",
            hint="do not align models of this architecture, and report it",
            subject=ref_or_arch,
        )


def _diagnostics(found: "Inspection") -> str:
    """All that decides how far a star can be found, in one line."""
    pinned = ", ".join(f"{reason} ({count})" for reason, count in found.pinned.items() if reason)  # none: length 1
    parts = [
        f"{found.groups} groups ({found.wreath_groups} wreath)",
        f"{found.coverage:.2%} of {found.parameters:,} parameters",
        f"pinned: {pinned or 'nothing'}",
        f"operators without a rule: {', '.join(found.unsupported_operators) or 'none'}",
        f"traced in {found.trace_seconds:.2f} s",
    ]
    if check := found.verify:
        passed, tried = check["negative_control_passed"], check["negative_control_tried"]
        parts.append(f"check {check['relative_error']:.1e}; negative control {passed}/{tried}")
    return "; ".join(parts)


def _failure(check: dict[str, Any]) -> str:
    """Why a check failed, the gravest reason first."""
    if check["guilty"]:
        groups = ", ".join(check["guilty"])
        return f"groups {groups} change the output ({check['relative_error']:.1e}, above {check['tolerance']:.0e})"
    if not check["weights_changed"]:
        return "no weight changed"
    missed = check["negative_control_tried"] - check["negative_control_passed"]
    return f"{missed} of {check['negative_control_tried']} wrong permutations went unnoticed"
