"""`starzoo verify`."""

from typing import Annotated

import typer

from starzoo.errors import UncheckedError, UntrustedInputError

from .output import Output, Table

_RESULTS = {True: "passed", False: "FAILED", None: "not checked"}


def verify(
    out: Output,
    star: Annotated[str, typer.Argument(metavar="STAR", help="A star: a folder or user/repo.")],
) -> None:
    """Check a star again: its files, its permutations, its sources, and that plain timm loads the same model.

    Where a check fails, the exit code is 3. Where none fails, but a source cannot be had to check it, it is 9.

    Example:
        starzoo verify star
    """
    from starzoo.verification import verify_star

    checks = verify_star(star, progress=out.progress)
    failed = [check for check in checks if check.passed is False]
    unchecked = [check for check in checks if check.passed is None]
    rows = [[f"{check.subject}: {check.what}", _RESULTS[check.passed], check.detail] for check in checks]
    out.result(
        {"passed": False if failed else None if unchecked else True, "checks": [vars(check) for check in checks]},
        brief=[f"{check.subject}: {check.what}: {_RESULTS[check.passed]}" for check in (*failed, *unchecked)],
        human=[Table(f"Checks of {star}", ["check", "result", "detail"], rows)],
    )
    if failed:
        first = failed[0]
        raise UntrustedInputError(
            f"{star}: {len(failed)} of {len(checks)} checks failed, the first one: {first.subject} {first.what}: "
            f"{first.detail}",
            hint="fetch the star again, or do not use it",
            subject=star,
        )
    if unchecked:
        first = unchecked[0]
        raise UncheckedError(
            f"{star}: {len(unchecked)} of {len(checks)} checks could not be made, the first one: {first.subject} "
            f"{first.what}: {first.detail}",
            hint="verify it where its sources can be had",
            subject=star,
        )
