"""`starzoo verify`."""

from starzoo.errors import UncheckedError, UntrustedInputError

from . import options
from .output import Output, Table

_RESULTS = {True: "passed", False: "FAILED", None: "not checked"}


def verify(
    out: Output,
    star: options.Star,
) -> None:
    """Check a star again: its files, its permutations, its sources, and that plain timm loads the same model.

    The exit code is 3 if a check fails, and 9 if none fails but a source cannot be downloaded for its check.

    Example:
        starzoo verify star
    """
    from starzoo.workflows.verify import verify_star

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
            star,
            f"{len(failed)} of {len(checks)} checks failed, the first one: {first.subject} {first.what}: "
            f"{first.detail}",
            hint="fetch the star again, or do not use it",
        )
    if unchecked:
        first = unchecked[0]
        raise UncheckedError(
            star,
            f"{len(unchecked)} of {len(checks)} checks could not be made, the first one: {first.subject} "
            f"{first.what}: {first.detail}",
            hint="verify it where its sources are",
        )
