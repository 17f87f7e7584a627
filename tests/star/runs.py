"""Commands in processes of their own, alone or as ranks of one run, to which faults happen.

A fork server has imported starzoo once, so that a process starts in no time. What torchrun tells its processes is told
here by the same environment; torchrun itself is only started where it is what is tested.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from tests.ports import free_port, torchrun_variables

__all__ = [
    "FEW",
    "SERVER",
    "Ended",
    "Fault",
    "Launched",
    "before_step",
    "digest",
    "fit_star",
    "hold",
    "kept",
    "kill",
    "launch",
    "run",
    "status",
    "torchrun",
    "until",
]

FEW = (
    *("--epochs", "2", "--batch-size", "128", "--points", "3", "--source-pairs", "0", "--quiet"),
    *("--set", "align.images=50", "--set", "star.midpoint_every=0", "--set", "evaluate.sources=1"),
)
"""Options of a run of 22 steps, in two epochs."""
SECONDS = 90  # after which a process that should have ended is taken for hanging
_PRELOADED = [
    "pytest",
    "starzoo.cli.main",
    "starzoo.workflows.fit",
    "starzoo.report.plots",
    # what a run imports when it gets there
    "datasets",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "rich.table",
    "sklearn.datasets",
    "starzoo.model_cards",
    "timm",
    "torch._dynamo",
]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(_PRELOADED)

Fault = Callable[[int], None]
"""Spoils a process, whose rank it is told, before the command begins; found by its name, so no function in another."""


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: Its exit code, negative for a signal.
        text: All that it printed.
    """

    code: int | None
    text: str


@dataclass(frozen=True)
class Launched:
    """Processes of one run."""

    processes: list[BaseProcess]
    outputs: list[Connection]

    def send(self, number: signal.Signals, *ranks: int) -> None:
        """Send a signal to some ranks."""
        for rank in ranks:
            os.kill(self.processes[rank].pid or 0, number)

    def wait(self, seconds: float = SECONDS) -> list[Ended]:
        """Wait until all have ended; who does not is killed and has no exit code."""
        deadline = time.monotonic() + seconds
        codes = []
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            codes.append(process.exitcode)
        for process in self.processes:
            process.kill()
            process.join()
        return [Ended(code, _read_all(output)) for code, output in zip(codes, self.outputs, strict=True)]


def launch(*arguments: str | Path, ranks: int = 1, fault: Fault | None = None) -> Launched:
    """Start a command, on several ranks if asked.

    Args:
        *arguments: The command line without the program's name.
        ranks: Number of processes.
        fault: What happens to them.

    Returns:
        The processes.
    """
    port, words = free_port(), [str(argument) for argument in arguments]
    processes, outputs = [], []
    for rank in range(ranks):
        ours, theirs = SERVER.Pipe(duplex=False)
        variables = torchrun_variables(rank, ranks, port)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(variables if ranks > 1 else {})}
        process = SERVER.Process(target=_serve, args=(words, environment, rank, fault, theirs), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        outputs.append(ours)
    return Launched(processes, outputs)


def run(*arguments: str | Path, ranks: int = 1, fault: Fault | None = None) -> list[Ended]:
    """Start a command and wait for its end (`launch`, `Launched.wait`)."""
    return launch(*arguments, ranks=ranks, fault=fault).wait()


def fit_star(sources: Sequence[Path], out: Path, *options: str, ranks: int = 1, fault: Fault | None = None) -> Launched:
    """Start a small `fit-star` (`FEW`)."""
    return launch("fit-star", *sources, "--out", out, *FEW, *options, ranks=ranks, fault=fault)


def torchrun(fault: Sequence[object], sources: Sequence[Path], out: Path, *options: str) -> subprocess.Popen[str]:
    """Start a small `fit-star` by torchrun, on two ranks.

    Args:
        fault: The name of a fault of this module and its arguments but the rank.
        sources: The models.
        out: The star's folder.
        *options: Further options.

    Returns:
        The process of torchrun.
    """
    ranks = ["--nproc_per_node", "2", "--master_port", str(free_port())]
    program = ["-m", "torch.distributed.run", *ranks, "-m", __name__, json.dumps(fault)]
    command = ["fit-star", *map(str, sources), "--out", str(out), *FEW, *options]
    return subprocess.Popen(
        [sys.executable, *program, *command],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """Wait for something.

    Args:
        condition: Asked again and again, until its answer is true.
        what: The condition in words.
        seconds: How long it may take.

    Returns:
        The answer.

    Raises:
        TimeoutError: It takes longer.
    """
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.01)
    return answer


def before_step(step: int, event: Callable[[], object]) -> None:
    """Let something happen in this process before a step's loss is evaluated, counted from its start."""
    from starzoo.star.objective import StarlightLoss

    original, number = StarlightLoss.accumulate, itertools.count(1)

    @functools.wraps(original)
    def accumulate(*arguments: Any, **options: Any) -> Any:
        if next(number) == step:
            event()
        return original(*arguments, **options)

    StarlightLoss.accumulate = accumulate  # type: ignore[method-assign]


def kill(victim: int, step: int, rank: int) -> None:
    """A fault: one process is killed before a step."""
    if rank == victim:
        before_step(step, functools.partial(os.kill, os.getpid(), signal.SIGKILL))


def hold(step: int, signals: int, mark: str, rank: int) -> None:
    """A fault: a process waits within a step until so many signals have come.

    It makes the file `mark`.RANK when it begins, and `mark`-NUMBER.RANK at every signal: two that are sent at once may
    be taken in another order, or for one.
    """
    from starzoo.star.run.signals import StopRequest

    note, come = StopRequest._note, list[int]()

    def note_and_tell(self: StopRequest, number: int, frame: FrameType | None) -> None:
        note(self, number, frame)
        come.append(number)
        Path(f"{mark}-{len(come)}.{rank}").touch()

    def wait_for_signals() -> None:
        Path(f"{mark}.{rank}").touch()
        until(lambda: len(come) >= signals, "the signals")

    StopRequest._note = note_and_tell  # type: ignore[method-assign]
    before_step(step, wait_for_signals)


def digest(file: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def status(folder: Path) -> dict[str, Any]:
    """What a run's status.json says."""
    found: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return found


def kept(folder: Path) -> list[int]:
    """The steps of a run's checkpoints."""
    return [int(path.name.split("-")[1]) for path in sorted((folder / "checkpoints").iterdir())]


def _serve(
    arguments: Sequence[str], environment: dict[str, str], rank: int, fault: Fault | None, output: Connection
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    if fault:
        fault(rank)
    from starzoo.cli.main import main

    sys.exit(main(arguments))


def _read_all(output: Connection) -> str:
    parts = []
    while wait([output], 0) and (part := os.read(output.fileno(), 2**16)):
        parts.append(part)
    output.close()
    return b"".join(parts).decode()


if __name__ == "__main__":
    from starzoo.cli.main import main

    name, *values = json.loads(sys.argv[1])
    globals()[name](*values, int(os.environ["RANK"]))
    sys.exit(main(sys.argv[2:]))
