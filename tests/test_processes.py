"""Processes of the fork server are what a test takes them for."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.processes import run_python, start_python


def test_a_process_has_its_own_environment_folder_arguments_and_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, sys; print(os.getcwd(), os.environ['COLOR'], *sys.argv[1:]); sys.exit('no')"
    monkeypatch.chdir(tmp_path)
    ended = run_python("-c", code, "one", "two", env={**os.environ, "COLOR": "red"})
    assert (ended.code, ended.out, ended.err) == (1, f"{tmp_path} red one two\n", "no\n")
    assert "COLOR" not in os.environ


def test_a_program_fails_with_its_traceback() -> None:
    ended = run_python("-c", "raise LookupError('nothing')")
    assert ended.code == 1
    assert "LookupError: nothing" in ended.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_it(number: signal.Signals) -> None:
    process = start_python("-c", "import time; time.sleep(60)")
    process.send(number)
    assert process.wait().code == -number


def test_a_process_that_hangs_is_killed_and_has_no_exit_code() -> None:
    assert start_python("-c", "import time; time.sleep(60)").wait(0.1).code is None


def test_a_package_can_be_imported_for_the_first_time() -> None:
    code = "import sys; print([name for name in sys.modules if name.startswith('starzoo')]); import starzoo.errors"
    ended = run_python("-c", code, forget="starzoo")
    assert (ended.code, ended.out) == (0, "[]\n")


def test_all_is_imported_in_advance() -> None:
    code = "import sys; before = set(sys.modules); import tests.preload; print(set(sys.modules) - before)"
    ended = run_python("-c", code)
    assert ended.out == "set()\n"


def test_what_was_read_at_import_cannot_be_changed_any_more() -> None:
    with pytest.raises(AssertionError, match="HF_HUB_OFFLINE"):
        run_python("-c", "", env={**os.environ, "HF_HUB_OFFLINE": "1"})


def test_a_module_runs_as_a_program() -> None:
    ended = run_python("-m", "starzoo.cli", "--version")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("starzoo ")
