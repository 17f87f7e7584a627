"""The symmetries of a network in words: what `starzoo inspect` prints."""

from __future__ import annotations

from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from starzoo.text import pluralize

from .output import Output, Table

if TYPE_CHECKING:
    from starzoo.workflows.inspect import Explanation, SymmetryReport

__all__ = ["show_inspection", "why_it_failed"]

_SHOWN = 6  # axes that are named one by one


def show_inspection(out: Output, found: SymmetryReport, *, groups: bool) -> None:
    """Show the symmetries of a network."""
    human: list[Table | str] = [f"{found.architecture}: {_diagnostics(found)}"]
    if groups:
        rows = [(group, str(size), outer or "", str(axes)) for group, size, outer, axes in found.table]
        human.append(Table("Groups", ("group", "size", "within", "axes"), rows))
    if found.why:
        human += _explanation(found.why)
    out.result(_document(found), brief=[found.groups], human=human)


def _document(found: SymmetryReport) -> dict[str, Any]:
    """The symmetries as a JSON value, whose rows have names."""
    table = [dict(zip(("group", "size", "within", "axes"), row, strict=True)) for row in found.table]
    why = found.why and {
        **vars(found.why),
        "groups": [dict(zip(("group", "size", "within", "others"), row, strict=True)) for row in found.why.groups],
        "pinned": [dict(zip(("size", "reason", "meaning"), row, strict=True)) for row in found.why.pinned],
    }
    return {**vars(found), "table": table, "why": why}


def _diagnostics(found: SymmetryReport) -> str:
    """All that decides how far a star can be found, in one line."""
    pinned = ", ".join(f"{reason} ({count})" for reason, count in found.pinned.items() if reason)  # none: length 1
    parts = [
        f"{pluralize(found.groups, 'group')} ({found.wreath_groups} wreath)",
        f"{found.coverage:.2%} of {found.parameters:,} parameters",
        f"pinned: {pinned or 'nothing'}",
        f"operators without a rule: {', '.join(found.unsupported_operators) or 'none'}",
        f"traced in {found.trace_seconds:.2f} s",
    ]
    if check := found.verify:
        passed, tried = check["negative_control_passed"], check["negative_control_tried"]
        rounded = f" (float32 inside of {check['rounded_in'][0]})" if check["rounded_in"] else ""
        verdict = "passed" if check["passed"] else "FAILED"
        proof = f"check {verdict}: {check['relative_error']:.1e}{rounded}; negative control {passed}/{tried}"
        parts.append(proof if found.groups else "nothing to check")
    return "; ".join(parts)


def _explanation(why: Explanation) -> list[Table | str]:
    """One axis in words: its structure, what moves it and with what, and what keeps it in place."""
    lines: list[Table | str] = [f"{why.tensor}:{why.axis} has {pluralize(why.size, 'position')}: {why.structure}"]
    letters = {group: letter for (group, *_), letter in zip(why.groups, ascii_uppercase, strict=False)}
    for group, size, outer, others in why.groups:
        freely = f"in each block of {letters.get(outer, outer)} by themselves" if outer else "freely"
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        together = f", together with {', '.join(others[:_SHOWN])}{more}" if others else ""
        lines.append(f"{letters.get(group, '')} {group}: {pluralize(size, 'position')}, permuted {freely}{together}")
    for size, reason, meaning in why.pinned:
        lines.append(f"{pluralize(size, 'position')} kept in place ({reason}): {meaning}")
    return lines


def why_it_failed(check: dict[str, Any]) -> str:
    """Why a check failed, the gravest reason first."""
    if check["failing_groups"]:
        groups = ", ".join(check["failing_groups"])
        return f"groups {groups} change the output ({check['relative_error']:.1e}, above {check['tolerance']:.0e})"
    if not check["weights_changed"]:
        return "no weight changed"
    missed = check["negative_control_tried"] - check["negative_control_passed"]
    return f"{missed} of {check['negative_control_tried']} wrong permutations went unnoticed"
