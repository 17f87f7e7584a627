"""`starzoo doctor`."""

from typing import Annotated

import typer

from .output import Output, Table


def doctor(
    out: Output,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove incomplete downloads and decoded images from the cache.")
    ] = False,
) -> None:
    """Check this machine: versions, devices, cache, disk, and the permissions of the Hub token, which is never shown.

    Example:
        starzoo doctor --clean
    """
    from starzoo.workflows.doctor import run_checks

    checks = run_checks(clean=clean)
    out.result(
        {"checks": checks},
        brief=[f"{check.name}: {check.result}" for check in checks if check.hint],
        human=[Table("This machine", ["check", "result", "to do"], [[c.name, c.result, c.hint] for c in checks])],
    )
