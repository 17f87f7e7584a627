"""Independent tasks on several processes: progress comes back, and no process outlives the call."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

import torch

from starzoo.errors import ResourceError, StarzooError

__all__ = ["Report", "available_cpus", "run_in_processes"]

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class Report(Protocol):
    """Called by a task on the way."""

    def __call__(self, **figures: float) -> None:
        """Report some named figures."""


def available_cpus() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_in_processes(
    work: Callable[[_Task, Report], _Result],
    tasks: Sequence[_Task],
    jobs: int,
    *,
    report: Report,
    finish: Callable[[_Result], None],
) -> None:
    """Do all tasks, `jobs` at a time; each process gets its share of the cores.

    The first failure stops everything. Ctrl-C is left to this process alone, which then ends the others.
    """
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        for task in tasks:
            finish(work(task, report))
        return
    waiting = deque(tasks)
    team: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(jobs):
            connection, process = _start(work, max(1, available_cpus() // jobs))
            team[connection] = process
            connection.send(waiting.popleft())
        while team:
            ready = set(wait(list(team)))
            for connection in [one for one in team if one in ready]:
                kind, value = _receive(connection, team[connection])
                match kind:
                    case "progress":
                        report(**value)
                    case "done":
                        if waiting:
                            connection.send(waiting.popleft())
                        else:
                            connection.close()  # which ends the process
                            team.pop(connection).join()
                        finish(value)
                    case "refused":
                        raise value
                    case "crashed":
                        raise RuntimeError(f"a worker process failed:\n{value}")
    finally:
        for process in team.values():
            process.terminate()
        for process in team.values():
            process.join()


def _start(work: Callable[[_Task, Report], _Result], threads: int) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")  # a forked copy of a process that has used OpenMP may hang
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work, threads), daemon=True)
    resource_tracker.ensure_running()  # started by the first process, it would let interrupts through again
    with _interrupts_blocked():
        process.start()
    theirs.close()  # so that the death of the process reads as the end of the pipe
    return ours, process


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Hold back Ctrl-C; a process started meanwhile inherits that for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _receive(connection: Connection, process: BaseProcess) -> tuple[str, Any]:
    try:
        kind, value = connection.recv()
    except (EOFError, ConnectionResetError) as error:
        process.join()
        killed = (process.exitcode or 0) < 0
        raise ResourceError(
            "",
            f"a worker process ended with exit code {process.exitcode} in the middle of its task",
            hint="the system may have run out of memory: use fewer jobs"
            if killed
            else 'see what it printed; a script that trains a zoo does so under `if __name__ == "__main__":`',
        ) from error
    return kind, value


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
) -> str:
    """One line without control bytes, which a warning about a stranger's file may hold."""
    return f"{filename}:{lineno}: {category.__name__}: {str(message)!r}\n"


def _serve(connection: Connection, work: Callable[[_Task, Report], _Result], threads: int) -> None:
    """Do what comes through the pipe until it is closed, by a parent that is content or dead."""
    torch.set_num_threads(threads)
    logging.getLogger("starzoo").addHandler(logging.NullHandler())  # the parent has said what there is to say
    warnings.formatwarning = _format_warning
    try:
        while True:
            task = connection.recv()
            try:
                answer: tuple[str, Any] = ("done", work(task, lambda **figures: connection.send(("progress", figures))))
            except StarzooError as error:
                answer = ("refused", error)
            except Exception:  # noqa: BLE001 - it is raised again on the other side
                answer = ("crashed", traceback.format_exc())
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
