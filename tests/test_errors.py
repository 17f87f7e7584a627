"""Every kind of failure ends with its own exit code, which scripts rely on."""

from __future__ import annotations

import pytest

from starzoo import errors

EXIT_CODES = {
    "UsageError": 2,
    "RunLockedError": 2,
    "UntrustedInputError": 3,
    "HubError": 4,
    "IncompatibleError": 5,
    "NumericalError": 6,
    "CheckpointError": 7,
    "ResourceError": 8,
    "UncheckedError": 9,
    "PreemptedError": 75,
    "InterruptedRunError": 130,
}


@pytest.mark.parametrize(("name", "code"), EXIT_CODES.items())
def test_exit_codes_are_those_of_the_documentation(name: str, code: int) -> None:
    error = getattr(errors, name)("subject", "problem", hint="do this")
    assert errors.exit_code_of(error) == error.exit_code == code
