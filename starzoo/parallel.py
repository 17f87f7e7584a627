"""Threads, and the processes of one run as torchrun starts them.

A run has several processes exactly when torchrun started it, which all of its variables say. What other launchers left
in the environment is ignored: it would let one process wait for others that nobody started.

Everything here is called by all processes at the same place, and does nothing special where there is only one. An error
on one process is raised on all of them, so that none waits for an answer that will not come. Within a step a process
that does not answer is missed after `runtime.timeout_minutes`; where one has work that the others have not, such as a
match or an upload, they wait for a day: a process that is lost ends the wait at once all the same.
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
    "default_device",
    "gather",
    "ignore_other_launchers",
    "is_main_process",
    "is_torchrun",
    "join",
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
Found = TypeVar("Found")
_PATIENCE = datetime.timedelta(days=1)

# What Accelerate goes by where it counts processes, with the value that is true of a single one.
_ALONE = {
    **dict.fromkeys(("RANK", "LOCAL_RANK", "PMI_RANK", "MPI_LOCALRANKID"), "0"),
    **dict.fromkeys(("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"), "0"),
    **dict.fromkeys(("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK"), "0"),
    **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS"), "1"),
    **dict.fromkeys(("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"), "1"),
    **dict.fromkeys(("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"), "1"),
    **dict.fromkeys(("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"), ""),
    "SLURM_NTASKS": "1",  # which nothing reads, but `srun -n 4` may seem to start one run on four processes
}
_ACCELERATE = ("ACCELERATE_", "FORK_LAUNCHED")  # how its own launcher passes on its configuration


def is_torchrun() -> bool:
    """Whether torchrun started this process: its variables are all there and fit together."""
    return _unlike_torchrun() is None


def rank() -> int:
    """The number of this process in its run; 0 where there is only one. Needs no torch and no meeting."""
    return int(os.environ["RANK"]) if is_torchrun() else 0


def world_size() -> int:
    """How many processes the run has. Needs no torch and no meeting."""
    return int(os.environ["WORLD_SIZE"]) if is_torchrun() else 1


def ignore_other_launchers() -> None:
    """Take out of this process's environment what other launchers left there, and warn where it says something else.

    Accelerate would wait for processes that nobody started, or shard and compile as no option of starzoo says.
    """
    environment, unlike = os.environ, _unlike_torchrun()
    if unlike and "RANK" in environment and environment.get("WORLD_SIZE", "1") != "1":
        claimed = f"RANK={environment['RANK']!r} and WORLD_SIZE={environment['WORLD_SIZE']!r}"
        raise UsageError(
            unlike,
            f"expected what torchrun sets beside {claimed}, got {environment.get(unlike, '')!r}",
            hint="start several processes with torchrun, or a single one after `unset RANK WORLD_SIZE`",
        )
    foreign = _ALONE if unlike else {}
    values = {name: environment.pop(name) for name in [*environment] if name in foreign or name.startswith(_ACCELERATE)}
    misleading = [name for name, value in values.items() if value != foreign.get(name)]
    if misleading:
        _logger.warning(
            "environment variables of another launcher are ignored: %s (only torchrun starts several processes, "
            "and only --config and --set say how they compute)",
            ", ".join(sorted(misleading)),
        )


def _unlike_torchrun() -> str | None:
    """The first variable of torchrun's that is not there or does not fit the others."""

    def number(name: str) -> int:
        text = os.environ.get(name, "")
        return int(text) if text.isdecimal() and len(text) < 10 else -1

    fits = {
        "TORCHELASTIC_RUN_ID": "TORCHELASTIC_RUN_ID" in os.environ,
        "WORLD_SIZE": number("WORLD_SIZE") > 0,
        "RANK": 0 <= number("RANK") < number("WORLD_SIZE"),
        "LOCAL_WORLD_SIZE": 0 < number("LOCAL_WORLD_SIZE") <= number("WORLD_SIZE"),
        "LOCAL_RANK": 0 <= number("LOCAL_RANK") < number("LOCAL_WORLD_SIZE"),
        "MASTER_ADDR": bool(os.environ.get("MASTER_ADDR")),
        "MASTER_PORT": 0 < number("MASTER_PORT") < 2**16,
    }
    return next((name for name, fit in fits.items() if not fit), None)


def default_device() -> torch.device:
    """The device that fit, alignment and evaluation run on: the accelerator, else the CPU."""
    import torch

    kind = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if kind is None else torch.device(kind.type, torch.accelerator.current_device_index())


def runs_on_cpu() -> bool:
    """Whether there is no accelerator: Accelerate takes several processes for several single ones unless it is told."""
    import torch

    return not torch.accelerator.is_available()


def rng_devices() -> list[int]:
    """This process's GPU by its number, if it has one: as `torch.random.fork_rng` takes devices."""
    import torch

    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


def join(config: RuntimeConfig) -> None:
    """Meet the other processes of the run."""
    count = _state(timeout=datetime.timedelta(minutes=config.timeout_minutes)).num_processes
    if config.num_processes not in {None, count}:
        raise UsageError(
            "runtime.num_processes",
            f"expected {config.num_processes}, got {pluralize(count, 'process', 'processes')}",
            hint=f"start it with torchrun --nproc_per_node {config.num_processes} -m starzoo.cli …"
            " (accelerate launch --cpu starts only one)",
        )
    _meet()


def is_main_process() -> bool:
    """Whether this is the process that writes and publishes; true where there is only one."""
    return bool(_state().is_main_process)


@contextmanager
def raise_everywhere() -> Iterator[None]:
    """What goes wrong inside on one process goes wrong on all: the first one's error is raised everywhere."""
    error: Exception | None = None
    try:
        yield
    except Exception as raised:  # noqa: BLE001 - raised below, when the others know
        error = raised
    _meet()
    errors = gather(error and _portable(error))
    if error:
        raise error
    for rank, other in enumerate(errors):
        if isinstance(other, StarzooError):
            other.message = f"process {rank}: {other.message}"
            raise other
        if other:
            raise RuntimeError(f"process {rank}: {other}")


def on_main_process(work: Callable[[], Found]) -> Found:
    """Do something on the first process only."""
    found = None
    with raise_everywhere():
        if is_main_process():
            found = work()
    return gather(found)[0]  # type: ignore[return-value]


def split_across_processes(
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], Iterable[Found]],
    *,
    tell: Callable[[int, int], None] | None = None,
) -> list[Found]:
    """Do something with every item, each on one process."""
    state = _state()
    mine = list[Found]()
    with raise_everywhere():
        for found in work(items[state.process_index :: state.num_processes]):
            mine.append(found)
            if tell:
                tell(min(len(mine) * state.num_processes, len(items)), len(items))
    parts = gather(mine)
    return [parts[number % len(parts)][number // len(parts)] for number in range(len(items))]


def gather(value: Found) -> list[Found]:
    """What every process gives."""
    from accelerate.utils import gather_object

    if _state().num_processes == 1:
        return [value]
    return list(gather_object([value]))


def _meet() -> None:
    """Wait for the others, however long their work takes."""
    import torch

    if _state().num_processes > 1:
        torch.distributed.barrier(_patient_group(torch.distributed.group.WORLD))


@cache
def _patient_group(world: object) -> Any:
    """The processes of a world once more, with more patience."""
    import torch

    return torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)


def _portable(error: Exception) -> StarzooError | str:
    return error if isinstance(error, StarzooError) else f"{type(error).__name__}: {error}"


def _state(**options: Any) -> PartialState:
    ignore_other_launchers()
    from accelerate import PartialState  # which reads some of these variables when it is imported

    return PartialState(cpu=runs_on_cpu(), **options)


class DelayedMaxReduce:
    """What all processes say at the end of a step, heard one step later, so that no step waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._alone = device, _state().num_processes == 1
        self._said: tuple[Tensor, Any] | None = None

    def share(self, values: Sequence[Tensor | float]) -> list[float] | None:
        """Say something, and hear what was said one step ago."""
        import torch

        words = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=self._device) for value in values])
        greatest = torch.distributed.ReduceOp.MAX
        said = None if self._alone else torch.distributed.all_reduce(words, greatest, async_op=True)
        heard = self.hear()
        self._said = words, said
        return heard

    def hear(self) -> list[float] | None:
        """Hear what was said last, which has to be waited for."""
        if self._said is None:
            return None
        words, said = self._said
        self._said = None
        if said is not None:
            said.wait()
        heard: list[float] = words.tolist()
        return heard


def threaded_map(work: Callable[[Item], Found], items: Iterable[Item], threads: int) -> Iterator[Found]:
    """Map a function over items that are taken one by one, as many at a time as there are threads."""
    if threads < 2:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        begun = deque[Future[Found]]()
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) == threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
