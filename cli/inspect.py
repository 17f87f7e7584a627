"""`starzoo inspect`."""

from string import ascii_uppercase
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starzoo.errors import NumericalError

from .options import ImageSize, ModelArgs
from .output import Output, Table
from .parsing import parse_model_args

if TYPE_CHECKING:
    from starzoo.inspection import Explanation, Inspection

SHOWN = 6  # axes that are named one by one


def inspect(
    out: Output,
    ref_or_arch: Annotated[str, typer.Argument(metavar="REF_OR_ARCH", help="A model, or a timm architecture.")],
    model_args: ModelArgs = None,
    image_size: ImageSize = None,
    verify: Annotated[bool, typer.Option("--verify", help="Permute at random and compare the outputs.")] = False,
    groups: Annotated[bool, typer.Option("--groups", help="List every group.")] = False,
    why: Annotated[str | None, typer.Option(metavar="PARAM:AXIS", help="Explain one axis of one tensor.")] = None,
    free_output: Annotated[
        bool, typer.Option("--free-output", help="Let the output be permuted too, as an embedding's may be.")
    ] = False,
) -> None:
    """Find the permutation symmetries of a model by tracing it.

    Where the check fails, the exit code is 6.

    Example:
        starzoo inspect vit_tiny_patch16_224 --verify --why blocks.0.attn.qkv.weight:0
    """
    from starzoo.inspection import inspect_model

    found = inspect_model(
        ref_or_arch,
        model_args=parse_model_args(model_args),
        image_size=image_size,
        pin_output=not free_output,
        verify=verify,
        why=why,
    )
    rows = [(group, str(size), outer or "", str(axes)) for group, size, outer, axes in found.table]
    human: list[Table | str] = [f"{found.architecture}: {_diagnostics(found)}"]
    human += [Table("Groups", ("group", "size", "within", "axes"), rows)] if groups else []
    human += _explanation(found.why) if found.why else []
    document = {**vars(found), "why": found.why and vars(found.why)}
    out.result(document, brief=[found.groups], human=human)
    if found.verify and found.groups and not found.verify["passed"]:
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
        rounded = f" (float32 inside of {check['rounded_in'][0]})" if check["rounded_in"] else ""
        proof = f"check {check['relative_error']:.1e}{rounded}; negative control {passed}/{tried}"
        parts.append(proof if found.groups else "nothing to check")
    return "; ".join(parts)


def _explanation(why: "Explanation") -> list[Table | str]:
    """One axis in words: its structure, what moves it and with what, and what keeps it in place."""
    lines: list[Table | str] = [f"{why.tensor}:{why.axis} has {why.size} positions: {why.structure}"]
    letters = {group: letter for (group, *_), letter in zip(why.groups, ascii_uppercase, strict=False)}
    for group, size, outer, others in why.groups:
        freely = f"in each block of {letters.get(outer, outer)} by themselves" if outer else "freely"
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        together = f", together with {', '.join(others[:SHOWN])}{more}" if others else ""
        lines.append(f"{letters.get(group, '')} {group}: {size} positions change places {freely}{together}")
    lines += [f"{size} positions stay in place ({reason}): {meaning}" for size, reason, meaning in why.pinned]
    return lines


def _failure(check: dict[str, Any]) -> str:
    """Why a check failed, the gravest reason first."""
    if check["guilty"]:
        groups = ", ".join(check["guilty"])
        return f"groups {groups} change the output ({check['relative_error']:.1e}, above {check['tolerance']:.0e})"
    if not check["weights_changed"]:
        return "no weight changed"
    missed = check["negative_control_tried"] - check["negative_control_passed"]
    return f"{missed} of {check['negative_control_tried']} wrong permutations went unnoticed"
