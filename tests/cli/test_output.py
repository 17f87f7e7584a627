from __future__ import annotations

import contextlib
import json
import logging
import os
import pty
import re
import subprocess
import sys
import warnings

import pytest

from starzoo.cli.main import main
from starzoo.cli.output import Output, Table, clean
from starzoo.errors import StarzooError, UntrustedInputError, UsageError
from starzoo.progress import no_progress
from starzoo.star.run.status import Status
from starzoo.workflows.doctor import run_checks
from tests.ports import torchrun_variables

FAILURE = UsageError("a", "wrong", hint="do b")
HOSTILE = "x\x1b[31mred\x07\x9b2J [bold]y[/bold] [/] :boom: \u202egnp.exe\u2028z"
HARMLESS = "x[31mred2J [bold]y[/bold] [/] :boom: gnp.exe z"


def show(out: Output) -> None:
    table = Table("Title", ("name", "value"), [("first", "1.5"), ("second", "22.5")])
    with out:
        print("a library says something")
        out.progress("working", 1, 2)
        out.progress("working", 2, 2, loss=0.25)
        out.result({"value": 22.5}, brief=["folder/a", "folder/b"], human=[table, "done"])


def test_human(capsys):
    show(Output())
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines() if "─" not in line] == [
        ["a", "library", "says", "something"],
        ["Title"],
        ["name", "value"],
        ["first", "1.5"],
        ["second", "22.5"],
        [],
        ["done"],
    ]
    assert err == "working: 2/2  loss 0.25\n"


def test_json_is_one_document_and_the_rest_is_on_stderr(capsys):
    show(Output(as_json=True))
    out, err = capsys.readouterr()
    assert json.loads(out) == {"value": 22.5}
    assert "a library says something" in err


def test_json_stays_one_document_when_a_command_fails_after_its_result(capsys):
    out = Output(as_json=True)
    out.result({"passed": False}, brief=[], human=[])
    assert out.fail(FAILURE, ValueError()) == 2
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"passed": False}
    assert shown.err == "error: a: wrong (hint: do b)\n"


def test_quiet(capsys):
    show(Output(quiet=True))
    out, err = capsys.readouterr()
    assert out == "folder/a\nfolder/b\n"
    assert err == "a library says something\n"


def test_only_the_first_process_speaks(capsys, monkeypatch):
    for name, value in torchrun_variables(rank=1, ranks=2, port=29500).items():
        monkeypatch.setenv(name, value)
    show(Output(as_json=True))
    assert capsys.readouterr() == ("", "a library says something\n")


def test_a_rank_of_another_launcher_silences_nobody(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    show(Output(quiet=True))
    assert capsys.readouterr().out == "folder/a\nfolder/b\n"


def test_numbers_that_json_does_not_have_are_refused(capsys):
    with pytest.raises(ValueError, match="Out of range float"):
        Output(as_json=True).result({"loss": float("nan")}, brief=[], human=[])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["pull", "a", "--json"], True),
        (["--json", "pull", "a"], True),
        (["pull", "--", "--json"], False),
        (["pull", "json"], False),
    ],
)
def test_flags_are_read_before_the_command_line_is_parsed(arguments, shown, capsys):
    Output.from_arguments(arguments).fail(FAILURE, ValueError("inner"))
    out, err = capsys.readouterr()
    assert err == "error: a: wrong (hint: do b)\n"
    assert bool(out) == shown
    if shown:
        error = {"kind": "UsageError", "message": "a: wrong", "hint": "do b", "subject": "a", "exit_code": 2}
        assert json.loads(out) == {"error": error}


def test_debug_shows_the_traceback(capsys):
    assert Output.from_arguments(["--debug"]).fail(FAILURE, ValueError("inner")) == 2
    assert "ValueError: inner" in capsys.readouterr().err


def test_p04_terminal_escapes_and_markup_are_printed_literally(capsys):
    assert clean(HOSTILE) == HARMLESS
    with Output() as out:
        out.note(HOSTILE)
        out.progress(HOSTILE, 1, 1)
        out.result({}, brief=[], human=[Table(HOSTILE, (HOSTILE, "b"), [(HOSTILE, HOSTILE)]), HOSTILE])
        out.fail(UntrustedInputError("", HOSTILE, hint=HOSTILE), ValueError())
    out, err = capsys.readouterr()
    assert out.count(HARMLESS) == 5
    assert err.splitlines() == [HARMLESS, f"{HARMLESS}: 1/1", f"error: {HARMLESS} (hint: {HARMLESS})"]
    assert "\x1b" not in out + err


def test_p04_json_escapes_control_bytes(capsys):
    Output(as_json=True).result({"name": HOSTILE}, brief=[], human=[])
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.replace("\n", "").isprintable()
    assert json.loads(out) == {"name": HOSTILE}


def test_undecodable_file_names_can_be_printed(capsys):
    name = os.fsdecode(b"caf\xe9")
    Output().result({}, brief=[], human=[name])
    assert capsys.readouterr().out == "caf\n"


def test_warnings_of_the_library_are_one_line_each(capsys):
    with Output():
        logging.getLogger("starzoo.hub").warning("two\nlines %s", "\x1b[0m")
    with Output(quiet=True):
        logging.getLogger("starzoo.hub").warning("not in quiet mode")
    assert capsys.readouterr() == ("", "warning: two lines [0m\n")


WARN = "import warnings; warnings.warn('from a child')"


def test_warnings_of_other_libraries_are_for_debugging(capfd, monkeypatch):
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    shown = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for debug in (False, True):
            with Output(debug=debug):
                warnings.warn(HOSTILE, stacklevel=1)
                subprocess.run([sys.executable, "-c", WARN], check=True)
            out, err = capfd.readouterr()
            assert out == ""
            assert "\x1b" not in err
            if debug:
                assert err.startswith(f"{clean(__file__)}:")
                assert HARMLESS in err
                assert "UserWarning: from a child" in err
            else:
                assert err == ""
    assert warnings.showwarning is shown
    assert "PYTHONWARNINGS" not in os.environ


def read_to_the_end(descriptor: int) -> str:
    chunks = []
    with os.fdopen(descriptor, "rb", buffering=0) as file, contextlib.suppress(OSError):  # EIO: the other end is closed
        while chunk := file.read(4096):
            chunks.append(chunk)
    return b"".join(chunks).decode()


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        with Output() as out:
            for step in range(1, 4):
                out.progress("fitting [b]the[/b] star", step, 3, loss=0.5)
            out.progress("loading", 2, 2)
            out.progress("loading", 1, 2)
    shown = read_to_the_end(leader)
    assert "fitting [b]the[/b] star" in shown
    assert "3/3" in shown
    assert "loss 0.5" in shown
    assert "1/2" in shown  # a stage that begins again gets a new bar
    assert shown.endswith("\x1b[?25h")  # the cursor is back


def test_h12_a_traceback_steers_no_terminal_and_names_no_password(capsys):
    out = Output(debug=True, as_json=True)
    address = "https://me:canary@mirror.example/x"  # which a traceback does not show
    with pytest.raises(ValueError, match="red") as caught:
        raise ValueError(f"{HOSTILE} {address}")
    failure = StarzooError("", f"internal {address}", hint=f"see {address}")
    assert out.fail(failure, caught.value) == 1
    out.note(address)
    shown = capsys.readouterr()
    assert '    raise ValueError(f"{HOSTILE} {address}")' in shown.err  # the traceback as it is
    assert HARMLESS.removesuffix(" z") in shown.err
    for text in (shown.out, shown.err):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028]", text)
        assert "canary" not in text
        assert "https://mirror.example/x" in text


def test_h12_no_error_names_a_password():
    error = UsageError("", "https://me:canary@mirror.example/x: wrong", hint="ask https://canary@mirror.example:80")
    assert str(error) == "https://mirror.example/x: wrong (ask https://mirror.example:80)"
    kept = "see https://huggingface.co/me/star@main and mail a@b.example"
    assert UsageError("", kept).message == kept


def test_h12_doctor_names_no_password(monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "https://me:canary@mirror.invalid")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for options in ([], ["--json"], ["--quiet"]):
        assert main(["doctor", *options]) == 0
        shown = capsys.readouterr()
        assert "canary" not in shown.out + shown.err
        assert "mirror.invalid" in shown.out + shown.err or options == ["--quiet"]
    assert "canary" not in str(run_checks())


def test_h12_status_json_names_no_password(tmp_path):
    status = Status(tmp_path, no_progress)
    with pytest.raises(ValueError, match="mirror"), status.record_outcome():
        raise ValueError("https://me:canary@mirror.example/x failed")
    assert "canary" not in (tmp_path / "status.json").read_text()
