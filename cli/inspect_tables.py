"""Tables and sentences about the symmetries of a network."""

from __future__ import annotations

from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from starzoo.text import pluralize

from .output import Output, Table

if TYPE_CHECKING:
    from starzoo.workflows.inspect import Explanation, SymmetryReport

__all__ = ["show_inspection", "why_it_failed"]

_MAX_AXES = 6  # that one line names


def show_inspection(out: Output, report: SymmetryReport, *, groups: bool) -> None:
    """Show the symmetries of a network."""
    human: list[Table | str] = [f"{report.architecture}: {_diagnostics(report)}"]
    if groups:
        rows = [(group, str(size), outer or "", str(axes)) for group, size, outer, axes in report.table]
        human.append(Table("Groups", ("group", "size", "within", "axes"), rows))
    if report.why:
        human += _explanation(report.why)
    out.result(_document(report), brief=[report.groups], human=human)


def _document(report: SymmetryReport) -> dict[str, Any]:
    """Return the symmetries as JSON, with names for the columns of tables."""
    table = [dict(zip(("group", "size", "within", "axes"), row, strict=True)) for row in report.table]
    why = report.why and {
        **vars(report.why),
        "groups": [dict(zip(("group", "size", "within", "others"), row, strict=True)) for row in report.why.groups],
        "pinned": [dict(zip(("size", "reason", "meaning"), row, strict=True)) for row in report.why.pinned],
    }
    return {**vars(report), "table": table, "why": why}


def _diagnostics(report: SymmetryReport) -> str:
    """All that decides how far a star can be report, in one line."""
    pinned = ", ".join(f"{reason} ({count})" for reason, count in report.pinned.items() if reason)  # none: length 1
    parts = [
        f"{pluralize(report.groups, 'group')} ({report.wreath_groups} wreath)",
        f"{report.coverage:.2%} of {report.parameters:,} parameters",
        f"pinned: {pinned or 'nothing'}",
        f"operators without a rule: {', '.join(report.unsupported_operators) or 'none'}",
        f"traced in {report.trace_seconds:.2f} s",
    ]
    if check := report.verify:
        passed, tried = check["negative_control_passed"], check["negative_control_tried"]
        rounded = f" (float32 inside of {check['rounded_in'][0]})" if check["rounded_in"] else ""
        verdict = "passed" if check["passed"] else "FAILED"
        proof = f"check {verdict}: {check['relative_error']:.1e}{rounded}; negative control {passed}/{tried}"
        parts.append(proof if report.groups else "nothing to check")
    return "; ".join(parts)


def _explanation(why: Explanation) -> list[Table | str]:
    """Explain one axis: its structure, its groups with the other axes that they permute, and its pinned parts."""
    lines: list[Table | str] = [f"{why.tensor}:{why.axis} has {pluralize(why.size, 'position')}: {why.structure}"]
    letters = {group: letter for (group, *_), letter in zip(why.groups, ascii_uppercase, strict=False)}
    for group, size, outer, others in why.groups:
        scope = f"within each block of {letters.get(outer, outer)}" if outer else "freely"
        more = f" and {len(others) - _MAX_AXES} more" if len(others) > _MAX_AXES else ""
        together = f", together with {', '.join(others[:_MAX_AXES])}{more}" if others else ""
        lines.append(f"{letters.get(group, '')} {group}: {pluralize(size, 'position')}, permuted {scope}{together}")
    for size, reason, meaning in why.pinned:
        lines.append(f"{pluralize(size, 'position')} kept in place ({reason}): {meaning}")
    return lines


def why_it_failed(check: dict[str, Any]) -> str:
    """Return the main reason why a check failed."""
    if check["failing_groups"]:
        groups = ", ".join(check["failing_groups"])
        return f"groups {groups} change the output ({check['relative_error']:.1e}, above {check['tolerance']:.0e})"
    if not check["weights_changed"]:
        return "no weight changed"
    missed = check["negative_control_tried"] - check["negative_control_passed"]
    return f"{missed} of {check['negative_control_tried']} wrong permutations went unnoticed"
