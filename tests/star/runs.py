"""Commands in processes of their own, alone or as ranks of one run, to which faults happen.

What torchrun tells its processes is told here by the same environment; torchrun itself is only started where it is what
is tested.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tests.blank_plots import draw_nothing
from tests.ports import free_port, torchrun_variables
from tests.processes import SECONDS, Started, start_python

__all__ = [
    "FEW",
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
    *("--train-size", "704", "--epochs", "2", "--batch-size", "64", "--points", "3", "--source-pairs", "0", "--quiet"),
    *("--set", "align.images=50", "--set", "star.midpoint_every=0", "--set", "evaluate.sources=1"),
    *("--set", "evaluate.batch_norm_images=200", "--set", "evaluate.bma_samples=2"),
    *("--set", "evaluate.validation_images=50"),
)
"""Options of a run of 22 steps, in two epochs."""
Fault = Callable[[int], None]
"""Spoils a process, whose rank it is told, before the command begins; found by its name, so no function in another."""


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, negative for a signal, and all that it printed."""

    code: int | None
    text: str


@dataclass(frozen=True)
class Launched:
    """Processes of one run."""

    processes: list[Started]

    def send(self, number: signal.Signals, *ranks: int) -> None:
        """Send a signal to some ranks."""
        for rank in ranks:
            self.processes[rank].send(number)

    def wait(self, seconds: float = SECONDS) -> list[Ended]:
        """Wait until all have ended; who does not is killed and has no exit code."""
        deadline = time.monotonic() + seconds
        ended = [process.wait(deadline - time.monotonic()) for process in self.processes]
        return [Ended(each.code, each.out) for each in ended]


def launch(*arguments: str | Path, ranks: int = 1, fault: Fault | None = None) -> Launched:
    """Start a command, on several ranks if asked, to which a fault happens."""
    port, processes = free_port(), []
    for rank in range(ranks):
        variables = torchrun_variables(rank, ranks, port) if ranks > 1 else {}
        before = functools.partial(_prepare, fault, rank)
        command = ("-m", "starzoo.cli", *arguments)
        processes.append(start_python(*command, env={**os.environ, **variables}, before=before, one_stream=True))
    return Launched(processes)


def _prepare(fault: Fault | None, rank: int) -> None:
    draw_nothing()
    if fault:
        fault(rank)


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


if __name__ == "__main__":
    from starzoo.cli.main import main

    name, *values = json.loads(sys.argv[1])
    globals()[name](*values, int(os.environ["RANK"]))
    sys.exit(main(sys.argv[2:]))
