"""Batches of one epoch, loaded by processes of their own where images are not held in memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from starzoo.config import Augmentation
from starzoo.data.augmentation import flip_and_crop, read_keyed
from starzoo.errors import StarzooError, to_starzoo_error
from starzoo.parallel import available_cpus

if TYPE_CHECKING:
    from starzoo.data.split import Split

__all__ = ["Batch", "Loader"]

Batch = tuple[Tensor, Tensor]

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
_PR_SET_PDEATHSIG = 1  # of prctl(2)


@dataclass(frozen=True)
class Loader:
    """The batches of one epoch, or a shard of each."""

    split: Split
    batches: list[Tensor]  # row numbers
    augment: Augmentation
    draws: Tensor  # for every image of the split: flip, vertical and horizontal offset in [0, 1), or a seed
    workers: int | None = None  # processes that load images which are not held in memory; as many as cores if None
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        """Yield images of shape (batch, channels, height, width) and labels of shape (batch,), on the device."""
        for pixels, labels in self.stored():
            on_device = pixels.to(self.device, non_blocking=True)  # of bytes, a quarter of what floats would take
            yield self.split.normalize(on_device), labels.to(self.device, non_blocking=True)

    def stored(self) -> Iterator[Batch]:
        """Yield pixels as they are loaded, of shape (batch, height, width, channels), and labels."""
        in_memory = self.augment != "timm" and self.split.pixels.is_kept
        workers = 0 if in_memory else min(_count_workers(self.workers), len(self))
        return _map_in_processes(self._read, self.batches, workers) if workers else map(self._read, self.batches)

    def skip(self, batches: int) -> Loader:
        """Return a loader without the first batches, for a resumed run."""
        return replace(self, batches=self.batches[batches:])

    def _read(self, rows: Tensor) -> Batch:
        split, draws = self.split, self.draws[rows]
        if self.augment == "timm":
            files = split.pixels.records.files(rows.tolist())
            pixels = read_keyed(split.read_transformed, files, draws.tolist())
        else:
            pixels = split.pixels[rows]
            if self.augment != "none":
                pixels = flip_and_crop(pixels, draws, crop=self.augment.startswith("crop"))
        return pixels, split.labels[rows]


def _count_workers(wanted: int | None) -> int:
    """Return the number of processes to fork, by default one for each core of this process."""
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 0  # a fork is not safe, or not allowed
    if wanted is None:  # `starzoo train` tells each of its processes its cores by the number of threads
        return torch.get_num_threads() if multiprocessing.parent_process() else available_cpus()
    return wanted


def _map_in_processes(read: Callable[[Tensor], Batch], items: Sequence[Tensor], workers: int) -> Iterator[Batch]:
    """Read batches in order, ahead of the consumer."""
    loader = DataLoader(
        cast("Dataset[Batch | StarzooError]", _Reader(read, items)),
        batch_size=None,
        sampler=range(len(items)),  # tensors would pass through shared memory
        num_workers=workers,
        worker_init_fn=_follow_parent,
        multiprocessing_context="fork",  # which starts at once, with the data set as it is
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or else it draws a number from the default one
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # for the whole life of the processes
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        for batch in batches:
            if isinstance(batch, StarzooError):
                raise batch
            yield batch
    except (ConnectionError, EOFError) as error:  # a process was killed while its batch was on the way
        raise RuntimeError("a DataLoader worker was lost") from error
    finally:
        del batches  # which ends the processes, though an error may keep this frame


@dataclass(frozen=True)
class _Reader:
    """A data set whose items are batches."""

    read: Callable[[Tensor], Batch]
    items: Sequence[Tensor]

    def __getitem__(self, index: int) -> Batch | StarzooError:
        """Return a batch in shared memory, or the error: torch would make another one of it."""
        try:
            pixels, labels = self.read(self.items[index])
            return pixels.share_memory_(), labels.share_memory_()  # type: ignore[no-untyped-call]
        except Exception as error:
            translated = to_starzoo_error(error)
            if translated is None:
                raise
            return translated


def _follow_parent(_: int) -> None:
    """End this process when its parent says so or ends, and not by a signal to all processes of a run."""

    def wait_for_parent() -> None:
        while True:
            received = signal.sigwaitinfo(_SIGNALS)
            if received.si_signo == signal.SIGTERM and received.si_pid == parent:
                os._exit(0)

    parent = os.getppid()
    sys.excepthook = lambda *_: None  # called when the parent takes no more of what was shared
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=wait_for_parent, daemon=True).start()
