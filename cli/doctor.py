"""`starzoo doctor`."""

from typing import Annotated

import typer

from .output import Output, Table


def doctor(
    out: Output,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove what downloads that were killed left in the cache.")
    ] = False,
) -> None:
    """Look at this machine: versions, devices, cache, disk, and what the Hub lets the token do; it is never shown.

    Example:
        starzoo doctor --clean
    """
    from starzoo.workflows.doctor import run_checks

    findings = run_checks(clean=clean)
    out.result(
        {"findings": [vars(finding) for finding in findings]},
        brief=[f"{finding.what}: {finding.found}" for finding in findings if finding.problem],
        human=[
            Table("This machine", ["what", "found", "to do"], [[f.what, f.found, f.problem] for f in findings]),
        ],
    )
