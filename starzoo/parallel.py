"""Threads, and the processes of one run as torchrun starts them.

A run has several processes only if torchrun started them. Variables of other launchers are ignored, since with them one
process would wait for others that were never started.

All processes call these functions at the same point; a single process need not wait. An error on one process is raised
on all of them, so that none waits in vain. Within a step, a process that does not answer ends the run after
`runtime.timeout_minutes`. Where only one has work, for example an upload, the others wait for up to a day, and a lost
process still ends the wait at once.
"""

from __future__ import annotations

import datetime
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from starzoo.errors import StarzooError, UsageError
from starzoo.text import pluralize

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState
    from torch import Tensor

    from starzoo.config import RuntimeConfig

__all__ = [
    "DelayedMaxReduce",
    "all_gather_object",
    "available_cpus",
    "default_device",
    "ignore_other_launchers",
    "init_processes",
    "is_main_process",
    "is_torchrun",
    "on_main_process",
    "raise_everywhere",
    "rank",
    "rng_devices",
    "runs_on_cpu",
    "split_across_processes",
    "threaded_map",
    "world_size",
]

_logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
_BARRIER_TIMEOUT = datetime.timedelta(days=1)

# The variables by which Accelerate counts processes, with their values for a single process.
_SINGLE_PROCESS = {
    **dict.fromkeys(("RANK", "LOCAL_RANK", "PMI_RANK", "MPI_LOCALRANKID"), "0"),
    **dict.fromkeys(("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"), "0"),
    **dict.fromkeys(("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK"), "0"),
    **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS"), "1"),
    **dict.fromkeys(("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"), "1"),
    **dict.fromkeys(("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"), "1"),
    **dict.fromkeys(("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"), ""),
    "SLURM_NTASKS": "1",  # nothing reads it, but `srun -n 4` may seem to start one run on four processes
}
_ACCELERATE = ("ACCELERATE_", "FORK_LAUNCHED")  # configuration from Accelerate's own launcher


def is_torchrun() -> bool:
    """Whether torchrun started this process: all of its variables are set and consistent."""
    return _inconsistent_variable() is None


def rank() -> int:
    """Return the number of this process in its run, from 0; it may be called before `init_processes`."""
    return int(os.environ["RANK"]) if is_torchrun() else 0


def world_size() -> int:
    """Return the number of processes of the run; it may be called before `init_processes`."""
    return int(os.environ["WORLD_SIZE"]) if is_torchrun() else 1


def available_cpus() -> int:
    """Return the number of processor cores that this process may use, its share where torchrun started several."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"])) if is_torchrun() else cores


def ignore_other_launchers() -> None:
    """Remove the variables of other launchers from the environment, and warn if they say something else.

    Accelerate would wait for processes that were never started, or shard and compile without an option of starzoo.
    """
    environment, inconsistent = os.environ, _inconsistent_variable()
    if inconsistent and "RANK" in environment and environment.get("WORLD_SIZE", "1") != "1":
        claimed = f"RANK={environment['RANK']!r} and WORLD_SIZE={environment['WORLD_SIZE']!r}"
        raise UsageError(
            inconsistent,
            f"expected what torchrun sets beside {claimed}, got {environment.get(inconsistent, '')!r}",
            hint="start several processes with torchrun, or a single one after `unset RANK WORLD_SIZE`",
        )
    expected = _SINGLE_PROCESS if inconsistent else {}
    removed = {
        name: environment.pop(name) for name in [*environment] if name in expected or name.startswith(_ACCELERATE)
    }
    misleading = [name for name, value in removed.items() if value != expected.get(name)]
    if misleading:
        _logger.warning(
            "environment variables of another launcher are ignored: %s (only torchrun starts several processes, "
            "and only --config and --set say how they compute)",
            ", ".join(sorted(misleading)),
        )


def _inconsistent_variable() -> str | None:
    """Return the first variable of torchrun that is missing or does not fit the others."""

    def number(name: str) -> int:
        text = os.environ.get(name, "")
        return int(text) if text.isdecimal() and len(text) < 10 else -1

    valid = {
        "TORCHELASTIC_RUN_ID": "TORCHELASTIC_RUN_ID" in os.environ,
        "WORLD_SIZE": number("WORLD_SIZE") > 0,
        "RANK": 0 <= number("RANK") < number("WORLD_SIZE"),
        "LOCAL_WORLD_SIZE": 0 < number("LOCAL_WORLD_SIZE") <= number("WORLD_SIZE"),
        "LOCAL_RANK": 0 <= number("LOCAL_RANK") < number("LOCAL_WORLD_SIZE"),
        "MASTER_ADDR": bool(os.environ.get("MASTER_ADDR")),
        "MASTER_PORT": 0 < number("MASTER_PORT") < 2**16,
    }
    return next((name for name, is_valid in valid.items() if not is_valid), None)


def default_device() -> torch.device:
    """Return the device of fit, alignment and evaluation: the accelerator, else the CPU."""
    import torch

    kind = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if kind is None else torch.device(kind.type, torch.accelerator.current_device_index())


def runs_on_cpu() -> bool:
    """Whether there is no accelerator; Accelerate has to know, or it runs several processes as single ones."""
    import torch

    return not torch.accelerator.is_available()


def rng_devices() -> list[int]:
    """Return the number of this process's GPU, if it has one, for `torch.random.fork_rng`."""
    import torch

    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


def init_processes(config: RuntimeConfig) -> None:
    """Connect to the other processes of the run."""
    count = _state(timeout=datetime.timedelta(minutes=config.timeout_minutes)).num_processes
    if config.num_processes not in {None, count}:
        raise UsageError(
            "runtime.num_processes",
            f"expected {config.num_processes}, got {pluralize(count, 'process', 'processes')}",
            hint=f"start it with torchrun --nproc_per_node {config.num_processes} -m starzoo.cli …"
            " (accelerate launch --cpu starts only one)",
        )
    _barrier()


def is_main_process() -> bool:
    """Whether this is the process that writes and publishes; true for a single process."""
    return bool(_state().is_main_process)


@contextmanager
def raise_everywhere() -> Iterator[None]:
    """Raise an error of one process on all of them, that of the lowest rank first."""
    error: Exception | None = None
    try:
        yield
    except Exception as own_error:  # noqa: BLE001 - raised below, once all processes know of it
        error = own_error
    _barrier()
    errors = all_gather_object(error and _picklable(error))
    if error:
        raise error
    for rank, remote_error in enumerate(errors):
        if isinstance(remote_error, StarzooError):
            remote_error.message = f"process {rank}: {remote_error.message}"
            raise remote_error
        if remote_error:
            raise RuntimeError(f"process {rank}: {remote_error}")


def on_main_process(work: Callable[[], Result]) -> Result:
    """Run a function on the first process only, and return its result on all of them."""
    result = None
    with raise_everywhere():
        if is_main_process():
            result = work()
    return all_gather_object(result)[0]  # type: ignore[return-value]


def split_across_processes(
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], Iterable[Result]],
    *,
    tell: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """Map a function over items, each on one process, and return all results on all of them."""
    state = _state()
    own_results = list[Result]()
    with raise_everywhere():
        for result in work(items[state.process_index :: state.num_processes]):
            own_results.append(result)
            if tell:
                tell(min(len(own_results) * state.num_processes, len(items)), len(items))
    results = all_gather_object(own_results)
    return [results[number % len(results)][number // len(results)] for number in range(len(items))]


def all_gather_object(value: Result) -> list[Result]:
    """Return the value of every process, by rank."""
    from accelerate.utils import gather_object

    if _state().num_processes == 1:
        return [value]
    return list(gather_object([value]))


def _barrier() -> None:
    """Wait for the other processes, however long their work takes."""
    import torch

    if _state().num_processes > 1:
        torch.distributed.barrier(_slow_group(torch.distributed.group.WORLD))


@cache
def _slow_group(world: object) -> Any:
    """Return a group of all processes with a long timeout, one for each `world` that they have formed."""
    import torch

    return torch.distributed.new_group(backend="gloo", timeout=_BARRIER_TIMEOUT)


def _picklable(error: Exception) -> StarzooError | str:
    return error if isinstance(error, StarzooError) else f"{type(error).__name__}: {error}"


def _state(**options: Any) -> PartialState:
    ignore_other_launchers()
    from accelerate import PartialState  # reads some of these variables on import

    return PartialState(cpu=runs_on_cpu(), **options)


class DelayedMaxReduce:
    """An asynchronous all-reduce of the maximum of a few scalars: step k + 1 reads the result of step k."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._is_single = device, _state().num_processes == 1
        self._pending: tuple[Tensor, Any] | None = None

    def start(self, values: Sequence[Tensor | float]) -> list[float] | None:
        """Start to reduce the values of a step, and return the reduced values of the step before."""
        import torch

        scalars = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=self._device) for value in values])
        maximum = torch.distributed.ReduceOp.MAX
        work = None if self._is_single else torch.distributed.all_reduce(scalars, maximum, async_op=True)
        reduced = self.wait()
        self._pending = scalars, work
        return reduced

    def wait(self) -> list[float] | None:
        """Wait for the reduced values of the last step, and return them once."""
        if self._pending is None:
            return None
        scalars, work = self._pending
        self._pending = None
        if work is not None:
            work.wait()
        reduced: list[float] = scalars.tolist()
        return reduced


def threaded_map(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Map a function over items in order, with at most one item per thread ahead of the consumer."""
    if threads < 2:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        futures = deque[Future[Result]]()
        try:
            for item in items:
                futures.append(pool.submit(work, item))
                if len(futures) == threads:
                    yield futures.popleft().result()
            while futures:
                yield futures.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
