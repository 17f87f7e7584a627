"""Endpoints of the paths of a fit: the aligned sources, on the device of the star."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from starzoo.models.weights import StateDict
from starzoo.symmetry.permutation import Permutation

__all__ = ["Endpoint", "Endpoints"]

_MEMORY_SHARE = 0.5  # of the device's free memory that aligned sources may take


@dataclass(frozen=True)
class Endpoint:
    """One aligned source on the device of the star.

    Attributes:
        parameters: Its parameters, in the order and memory layout of the star's.
        buffers: All other tensors of its state dict, by name.
    """

    parameters: list[Tensor]
    buffers: dict[str, Tensor]


class Endpoints:
    """The aligned sources.

    Either all of them are on the device, or they stay unpermuted in the host's memory, and the one that a step needs is
    copied and permuted while the step before is still being computed.
    """

    def __init__(
        self,
        sources: Sequence[StateDict],
        star: Mapping[str, nn.Parameter],
        *,
        sources_on: Literal["auto", "device", "host"] = "auto",
    ) -> None:
        self.star = star
        self.device = next(iter(star.values())).device
        self.sources = [dict(source) for source in sources]
        size = sum(parameter.numel() * parameter.element_size() for parameter in star.values())
        fits = sources_on == "auto" and len(sources) * size <= _MEMORY_SHARE * _free_memory(self.device)
        self.on_device = fits or sources_on == "device"
        if not self.on_device and self.device.type == "cuda":
            self.sources = [{name: value.pin_memory() for name, value in source.items()} for source in self.sources]
        self._permutations: Sequence[Permutation] = ()
        self._endpoints: dict[int, Endpoint] = {}
        self._prefetched: tuple[int, Future[Endpoint]] | None = None
        self._thread = ThreadPoolExecutor(1)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.sources)

    def align(self, permutations: Sequence[Permutation]) -> None:
        """Set the permutations of the sources."""
        if permutations is self._permutations:
            return
        self._permutations, self._prefetched = permutations, None
        self._endpoints.clear()
        if self.on_device:
            self._endpoints = {index: self._permute(index) for index in range(len(self.sources))}

    def prefetch(self, index: int | None) -> None:
        """Begin to permute the source that the next call of `get` asks for, if it is known."""
        if index is not None and not self.on_device:
            self._prefetched = index, self._thread.submit(self._permute, index)

    def get(self, index: int) -> Endpoint:
        """Return an aligned source."""
        if self.on_device:
            return self._endpoints[index]
        if self._prefetched and self._prefetched[0] == index:
            endpoint = self._prefetched[1].result()
        else:
            endpoint = self._permute(index)
        if self._stream:
            for tensor in (*endpoint.parameters, *endpoint.buffers.values()):  # its memory is not reused too early
                tensor.record_stream(torch.cuda.current_stream(self.device))
        return endpoint

    def _permute(self, index: int) -> Endpoint:
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            source = {name: value.to(self.device, non_blocking=True) for name, value in self.sources[index].items()}
            tensors = self._permutations[index].apply(source)
            parameters = [
                tensors.pop(name).contiguous(memory_format=_memory_format(parameter))
                for name, parameter in self.star.items()
            ]
        if self._stream:
            self._stream.synchronize()  # this thread waits, not the one that trains
        return Endpoint(parameters, tensors)


def _free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    import psutil  # type: ignore[import-untyped]  # Accelerate needs it

    return float(psutil.virtual_memory().available) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _memory_format(tensor: Tensor) -> torch.memory_format:
    is_channels_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_channels_last else torch.contiguous_format
