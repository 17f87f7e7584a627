from __future__ import annotations

import functools
import signal
from pathlib import Path

import pytest

from tests.star.runs import fit_star, kill

EVERY_STEP = ("--set", "runtime.checkpoint_minutes=0.00001")


@pytest.fixture(scope="session")
def members(digits_zoo: list[Path]) -> list[Path]:
    """The sources of all small runs."""
    return digits_zoo[:2]


@pytest.fixture(scope="session")
def whole(members: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The star of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "star"
    [ended] = fit_star(members, out).wait()
    assert ended.code == 0, ended.text
    return out


@pytest.fixture(scope="session")
def whole_of_two(members: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on two ranks."""
    out = tmp_path_factory.mktemp("whole-of-two") / "star"
    assert [ended.code for ended in fit_star(members, out, ranks=2).wait()] == [0, 0]
    return out


@pytest.fixture(scope="session")
def killed(members: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that was killed in the middle of its second epoch."""
    out = tmp_path_factory.mktemp("killed") / "star"
    [ended] = fit_star(members, out, *EVERY_STEP, fault=functools.partial(kill, 0, 18)).wait()
    assert ended.code == -signal.SIGKILL
    return out


@pytest.fixture(scope="session")
def killed_of_two(members: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on two ranks, the first of which was killed."""
    out = tmp_path_factory.mktemp("killed-of-two") / "star"
    ended = fit_star(members, out, *EVERY_STEP, ranks=2, fault=functools.partial(kill, 0, 18)).wait()
    assert [each.code for each in ended] == [-signal.SIGKILL, 75]
    return out
