"""Endpoints of the paths of a fit: the aligned sources."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from starzoo.models.weights import StateDict
from starzoo.symmetry.permutation import Permutation

__all__ = ["End", "Endpoints"]

_SHARE = 0.5  # of the device's free memory that aligned sources may take


@dataclass(frozen=True)
class End:
    """One aligned source on the device of the star.

    Attributes:
        parameters: Its parameters, in the order and memory layout of the star's.
        buffers: All other tensors of its state dict, by name.
    """

    parameters: list[Tensor]
    buffers: dict[str, Tensor]


class Endpoints:
    """The aligned sources.

    Either all of them are ready on the device, or they stay as they are in the computer's memory, and the one that a
    step needs is brought over and permuted while the step before is still being computed.
    """

    def __init__(
        self, sources: Sequence[StateDict], star: Mapping[str, nn.Parameter], *, ready: bool | None = None
    ) -> None:
        self.star = star
        self.device = next(iter(star.values())).device
        self.sources = [dict(source) for source in sources]
        size = sum(parameter.numel() * parameter.element_size() for parameter in star.values())
        self.ready = len(sources) * size <= _SHARE * _free_memory(self.device) if ready is None else ready
        if not self.ready and self.device.type == "cuda":
            self.sources = [{name: value.pin_memory() for name, value in source.items()} for source in self.sources]
        self._permutations: Sequence[Permutation] = ()
        self._made: dict[int, End] = {}
        self._ahead: tuple[int, Future[End]] | None = None
        self._thread = ThreadPoolExecutor(1)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def align(self, permutations: Sequence[Permutation]) -> None:
        """Permute the sources anew."""
        if permutations is self._permutations:
            return
        self._permutations, self._ahead = permutations, None
        self._made.clear()
        if self.ready:
            self._made = {number: self._make(number) for number in range(len(self.sources))}

    def prefetch(self, number: int) -> None:
        """Begin to make a source available: the next call of `get` asks for it."""
        if not self.ready:
            self._ahead = number, self._thread.submit(self._make, number)

    def get(self, number: int) -> End:
        """An aligned source."""
        if self.ready:
            return self._made[number]
        end = self._ahead[1].result() if self._ahead and self._ahead[0] == number else self._make(number)
        if self._stream:
            for tensor in (*end.parameters, *end.buffers.values()):  # so that its memory is not used again too early
                tensor.record_stream(torch.cuda.current_stream(self.device))
        return end

    def _make(self, number: int) -> End:
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            source = {name: value.to(self.device, non_blocking=True) for name, value in self.sources[number].items()}
            end = self._permutations[number].apply(source)
            parameters = [
                end.pop(name).contiguous(memory_format=_layout(parameter)) for name, parameter in self.star.items()
            ]
        if self._stream:
            self._stream.synchronize()  # this thread waits, not the one that trains
        return End(parameters, end)


def _free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    import psutil  # type: ignore[import-untyped]  # Accelerate needs it

    return float(psutil.virtual_memory().available) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _layout(tensor: Tensor) -> torch.memory_format:
    last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
