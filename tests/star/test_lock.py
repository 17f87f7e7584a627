"""One run at a time in a folder, and the next one as soon as it has ended, however it did."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from starzoo.errors import UsageError
from starzoo.star.run.lock import RunLock
from starzoo.star.run.log import TrainingLog
from tests.ports import torchrun_variables

HOLD = """
import sys, time
from pathlib import Path
from starzoo.star.run.lock import RunLock
with RunLock(Path(sys.argv[1])) as lock:
    lock.acquire()
    print("taken", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_free_at_once_when_its_run_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "taken\n"
        with pytest.raises(UsageError, match="another run is at work in it") as caught, RunLock(tmp_path):
            pass
        assert caught.value.exit_code == 2
        other.kill()
    with RunLock(tmp_path), pytest.raises(UsageError, match="another run"), RunLock(tmp_path):
        pass


def test_a_folder_is_not_made_before_it_is_needed(tmp_path: Path) -> None:
    with RunLock(tmp_path / "star") as lock:
        assert not (tmp_path / "star").exists()
        lock.acquire()
        with pytest.raises(UsageError, match="another run"), RunLock(tmp_path / "star"):
            pass


def test_the_first_of_several_processes_locks_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunLock(tmp_path) as lock:
        lock.acquire()
        for name, value in torchrun_variables(rank=1, ranks=2, port=29500).items():
            monkeypatch.setenv(name, value)
        with RunLock(tmp_path):
            pass


def test_a_log_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    notes, star = tmp_path / "notes.txt", tmp_path / "star"
    notes.write_text("mine")
    star.mkdir()
    for name in (".lock", "training.log"):
        (star / name).symlink_to(notes)
    lock, lines = RunLock(star), TrainingLog(star / "training.log", [], epochs=1, images=1)
    for write in (lock.acquire, lambda: lines.write_line("a line")):
        with pytest.raises(UsageError, match=r"(\.lock|training\.log): cannot be written"):
            write()
    assert notes.read_text() == "mine"


def test_h12_no_control_byte_reaches_the_log(tmp_path: Path) -> None:
    log = tmp_path / "training.log"
    lines = TrainingLog(log, ["x\x1b[31mred\x07\x9b\u202e\nforged line"], epochs=1, images=1)
    lines.write_epoch(1, {"midpoint_loss": 1.0, "midpoint_loss.0": 1.0, "moved": 0.0})
    lines.write_line("two\rone")
    text = log.read_text(encoding="utf-8")
    assert len(text.splitlines()) == 2
    assert "x[31mredforged line)  moved 0" in text
    assert all(letter.isprintable() for letter in text.replace("\n", ""))
