"""Python processes that start in no time: a fork server has imported what they would import.

Each has its own signals, environment, folder and exit code. Only its interpreter is not fresh: a test of what an import
or the start of the interpreter does uses `subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

__all__ = [
    "SECONDS",
    "SERVER",
    "Ended",
    "Started",
    "ensure_running",
    "run_python",
    "start_process",
    "start_python",
]

SECONDS = 90
"""After which a process that should have ended is taken for hanging."""

_ROOT = Path(__file__).parents[1]
_READ_AT_IMPORT = ("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_DISABLE_XET", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")
_ENVIRONMENT = dict(os.environ)  # as tests/conftest.py has made it, before any test changes it

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.preload"])


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, negative for a signal and None if it hung, and what it printed."""

    code: int | None
    out: str
    err: str


@dataclass(frozen=True)
class Started:
    """A process that may still run."""

    process: BaseProcess
    out: Connection
    err: Connection

    @property
    def pid(self) -> int:
        """Its number."""
        assert self.process.pid
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, seconds: float = SECONDS) -> Ended:
        """Wait for its end; a process that does not end in time is killed."""
        self.process.join(max(0.0, seconds))
        code = self.process.exitcode
        self.process.kill()
        self.process.join()
        return Ended(code, _read_all(self.out), _read_all(self.err))


def ensure_running() -> None:
    """Start the fork server in an environment that no test has changed."""
    with mock.patch.dict(os.environ, {**_ENVIRONMENT, "PYTHONPATH": str(_ROOT)}, clear=True):
        forkserver.ensure_running()


def start_process(function: Callable[..., object], *arguments: object) -> BaseProcess:
    """Start a function of a module in a process of its own."""
    ensure_running()
    process = SERVER.Process(target=function, args=arguments)
    with mock.patch.dict(sys.modules, {"__main__": types.ModuleType("__main__")}):
        process.start()  # which would import again the program that runs the tests
    return process


def start_python(
    *words: str | Path,
    env: Mapping[str, str] | None = None,
    before: Callable[[], object] | None = None,
    forget: str | None = None,
    one_stream: bool = False,
) -> Started:
    """Start what `python WORDS...` would: `-m MODULE ARGUMENTS...` or `-c CODE ARGUMENTS...`.

    Args:
        *words: The command line.
        env: The whole environment, if not that of this process.
        before: What happens in the process before all else.
        forget: A package that is not imported yet in the process.
        one_stream: Whether errors go where other output goes.
    """
    environment = dict(os.environ if env is None else env)
    changed = [name for name in _READ_AT_IMPORT if environment.get(name) != _ENVIRONMENT.get(name)]
    assert not changed, f"what is preloaded has read {changed} already"
    (out, out_of_process), (err, err_of_process) = (SERVER.Pipe(duplex=False) for _ in range(2))
    streams = (out_of_process, out_of_process if one_stream else err_of_process)
    arguments = ([str(word) for word in words], environment, Path.cwd(), before, forget, streams)
    process = start_process(_serve, *arguments)
    out_of_process.close()
    err_of_process.close()
    return Started(process, out, err)


def run_python(*words: str | Path, env: Mapping[str, str] | None = None, forget: str | None = None) -> Ended:
    """Run what `python WORDS...` would to its end."""
    return start_python(*words, env=env, forget=forget).wait()


def _read_all(stream: Connection) -> str:
    parts = []
    while wait([stream], 0) and (part := os.read(stream.fileno(), 2**16)):
        parts.append(part)
    return b"".join(parts).decode()


def _serve(
    words: list[str],
    environment: dict[str, str],
    folder: Path,
    before: Callable[[], object] | None,
    forget: str | None,
    streams: tuple[Connection, Connection],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream.fileno(), number)
    for stream in set(streams):
        stream.close()
    if before:
        before()
    if forget:
        for name in [name for name in sys.modules if name.partition(".")[0] == forget]:
            del sys.modules[name]
    kind, program, *arguments = words
    sys.argv = [kind, *arguments]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
