"""Independent tasks on several processes, none of which outlives the call.

A `ProcessPoolExecutor` names neither the task nor the exit code of a process that was killed, and leaves its processes
running when it is interrupted.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

from starzoo.errors import ResourceError, StarzooError
from starzoo.parallel import available_cpus

__all__ = ["ReportProgress", "run_in_processes"]

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

ReportProgress = Callable[..., None]
"""Called by a task with figures by name."""


def run_in_processes(
    work: Callable[[_Task, ReportProgress], _Result],
    tasks: Sequence[_Task],
    jobs: int,
    *,
    report: ReportProgress,
    on_result: Callable[[_Result], None],
) -> None:
    """Do all tasks, `jobs` at a time; each process gets its share of the cores.

    The first failure stops everything. Ctrl-C interrupts this process alone, which then ends the others.
    """
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        for task in tasks:
            on_result(work(task, report))
        return
    waiting, running = deque(tasks), dict[Connection, _Task]()
    processes: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(jobs):
            connection, process = _start(work, max(1, available_cpus() // jobs))
            processes[connection], running[connection] = process, waiting.popleft()
            connection.send(running[connection])
        while processes:
            ready = set(wait(list(processes)))
            for connection in [connection for connection in processes if connection in ready]:
                task = running[connection]
                kind, value = _receive(connection, processes[connection], task)
                match kind:
                    case "progress":
                        report(**value)
                    case "result":
                        if waiting:
                            running[connection] = waiting.popleft()
                            connection.send(running[connection])
                        else:
                            connection.close()  # which ends the process
                            processes.pop(connection).join()
                        on_result(value)
                    case "error":
                        raise value
                    case "crash":
                        raise RuntimeError(f"{task}: a worker process failed:\n{value}")
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join()


def _start(work: Callable[[_Task, ReportProgress], _Result], threads: int) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")  # a forked copy of a process that has used OpenMP may hang
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work, threads))  # not a daemon, which may have no loaders
    resource_tracker.ensure_running()  # started by the first process, it would let interrupts through again
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # for the whole life of the process
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    theirs.close()  # so that the death of the process reads as the end of the pipe
    return ours, process


def _receive(connection: Connection, process: BaseProcess, task: object) -> tuple[str, Any]:
    try:
        kind, value = connection.recv()
    except (EOFError, ConnectionResetError) as error:
        process.join()
        killed = (process.exitcode or 0) < 0
        raise ResourceError(
            str(task),
            f"a worker process ended with exit code {process.exitcode} in the middle of its task",
            hint="the system may have run out of memory: use fewer jobs"
            if killed
            else 'see what it printed; a script that trains a zoo does so under `if __name__ == "__main__":`',
        ) from error
    return kind, value


def _serve(connection: Connection, work: Callable[[_Task, ReportProgress], _Result], threads: int) -> None:
    """Do the tasks that come through the pipe until the parent closes it, or dies."""
    torch.set_num_threads(threads)
    logging.getLogger("starzoo").addHandler(logging.NullHandler())  # the parent logs the same warnings
    warnings.formatwarning = _format_warning
    try:
        while True:
            task = connection.recv()
            try:
                result = work(task, lambda **figures: connection.send(("progress", figures)))
                reply: tuple[str, Any] = ("result", result)
            except StarzooError as error:
                reply = ("error", error)
            except Exception:  # noqa: BLE001  raised again in the parent
                reply = ("crash", traceback.format_exc())
            connection.send(reply)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
) -> str:
    """Format a warning as one line without control bytes, which one about a stranger's file may hold."""
    return f"{filename}:{lineno}: {category.__name__}: {str(message)!r}\n"
