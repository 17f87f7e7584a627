"""Predictions of aligned sources, for distillation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from starzoo.star.endpoints import End

__all__ = ["Teacher"]


class Teacher:
    """Computes the predictions of sources."""

    def __init__(
        self,
        network: nn.Module,
        star: Mapping[str, nn.Parameter],
        precision: Callable[[], AbstractContextManager[object]],
    ) -> None:
        for parameter in network.parameters():
            parameter.data = torch.empty(0)
        self._network = network.requires_grad_(False).to(next(iter(star.values())).device)
        self._names, self._precision = list(star), precision
        self._buffers = [name for name, _ in network.named_buffers()]

    @torch.no_grad()
    def predict(self, end: End, images: Tensor) -> Tensor:
        """What an aligned source predicts: the same as the source itself."""
        self._network.eval()  # each time: some networks keep what they make of their weights until this is called
        buffers = {name: end.buffers[name] for name in self._buffers if name in end.buffers}
        tensors = {**dict(zip(self._names, end.parameters, strict=True)), **buffers}
        with self._precision():
            logits: Tensor = functional_call(self._network, tensors, (images,))
        return logits.float().softmax(1)
