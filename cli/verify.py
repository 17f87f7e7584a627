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
        {"passed": False if failed else None if unchecked else True, "checks": checks},
        brief=[f"{check.subject}: {check.what}: {_RESULTS[check.passed]}" for check in (*failed, *unchecked)],
        human=[Table(f"Checks of {star}", ["check", "result", "detail"], rows)],
    )
    if problems := failed or unchecked:
        first = problems[0]
        kind, outcome, hint = (
            (UntrustedInputError, "failed", "download the star again, or do not use it")
            if failed
            else (UncheckedError, "could not be made", "verify the star where its sources are available")
        )
        raise kind(
            star,
            f"{len(problems)} of {len(checks)} checks {outcome}, the first one: {first.subject} {first.what}: "
            f"{first.detail}",
            hint=hint,
        )
