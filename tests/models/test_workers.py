"""Tasks on several processes: all done, failures told, nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from starzoo.data.loader import _count_workers
from starzoo.errors import NumericalError, ResourceError
from starzoo.models.training.workers import ReportProgress, run_in_processes
from starzoo.parallel import available_cpus


def square(task: int, report: ReportProgress) -> int:
    match task:
        case 11:
            os._exit(9)
        case 12:
            raise LookupError("nothing at 12")
        case 13:
            raise NumericalError("13", "is too much", hint="take 12")
        case 14:
            warnings.warn("\x1b[31mred", stacklevel=1)
    report(task=task)
    return task * task


@pytest.mark.usefixtures("prepared_workers")
@pytest.mark.parametrize("jobs", [1, 2])
def test_every_task_is_done_once(jobs: int) -> None:
    reported, results = [], []
    run_in_processes(
        square, range(5), jobs, report=lambda **figures: reported.append(figures), on_result=results.append
    )
    assert sorted(results) == [0, 1, 4, 9, 16]
    assert sorted(figures["task"] for figures in reported) == [0, 1, 2, 3, 4]


def count_loaders(task: int, report: ReportProgress) -> int | None:
    return _count_workers(None)


@pytest.mark.usefixtures("prepared_workers")
@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_a_process_may_have_processes_that_load_images_for_its_share_of_the_cores() -> None:
    results: list[int | None] = []
    run_in_processes(count_loaders, [1, 2], 2, report=lambda **_: None, on_result=results.append)
    assert results == [max(1, available_cpus() // 2)] * 2


@pytest.mark.usefixtures("prepared_workers")
@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (11, ResourceError, "11: a worker process ended with exit code 9 in the middle"),
        (12, RuntimeError, "(?s)12: a worker process failed:.*in square.*nothing at 12"),
        (13, NumericalError, r"13: is too much \(take 12\)"),
    ],
)
def test_failure_of_a_worker_is_told(task: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        run_in_processes(square, [task, 1], 2, report=lambda **_: None, on_result=lambda _: None)
    assert task != 13 or caught.value.subject == "13"


def test_what_a_worker_is_warned_of_steers_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    run_in_processes(square, [14, 1], 2, report=lambda **_: None, on_result=lambda _: None)
    [line] = capfd.readouterr().err.splitlines()
    assert line.endswith(r"UserWarning: '\x1b[31mred'")


_ENDLESS = """
import time
from starzoo.models.training.workers import run_in_processes

def work(task, report):
    while True:
        report(task=task)
        time.sleep(0.1)

if __name__ == "__main__":
    run_in_processes(work, [1, 2, 3], 2, report=lambda **figures: print(figures, flush=True), on_result=print)
"""


def children(parent: int) -> set[int]:
    """The processes below one, from /proc."""
    below: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            child = int(stat.parent.name)
            below |= {child} | children(child)
    return below


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_an_interrupted_run(tmp_path: Path, blow: signal.Signals) -> None:
    (tmp_path / "run.py").write_text(_ENDLESS)
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert run.stdout
    assert "task" in run.stdout.readline()
    workers = children(run.pid)
    assert len(workers) >= 2
    if blow == signal.SIGINT:
        os.killpg(run.pid, blow)  # what a terminal does: to every process of the group
    else:
        run.kill()
    errors = run.communicate(timeout=60)[1]
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert errors.count("Traceback") == (blow == signal.SIGINT)  # of the run itself, and none of its workers
    assert errors.count("KeyboardInterrupt") == (blow == signal.SIGINT)
