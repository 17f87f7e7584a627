"""Predictions of the aligned sources, for distillation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from starzoo.config import OptimizationConfig, StarConfig
from starzoo.models.training.targets import probabilities
from starzoo.star.endpoints import Endpoint

__all__ = ["Teacher"]


class Teacher:
    """Predicts with the weights of one aligned source after another, in one network."""

    def __init__(
        self,
        network: nn.Module,
        star: Mapping[str, nn.Parameter],
        precision: Callable[[], AbstractContextManager[object]],
        config: OptimizationConfig = StarConfig(),
    ) -> None:
        for parameter in network.parameters():
            parameter.data = torch.empty(0)
        self._network = network.requires_grad_(False).to(next(iter(star.values())).device)
        self._names, self._precision, self._config = list(star), precision, config
        self._buffers = [name for name, _ in network.named_buffers()]

    def predict(self, endpoints: Iterable[Endpoint], images: Tensor) -> Tensor:
        """Return the mean probabilities of aligned sources, which are those of the sources themselves."""
        return torch.stack([self._predict(endpoint, images) for endpoint in endpoints]).mean(0)

    @torch.no_grad()
    def _predict(self, endpoint: Endpoint, images: Tensor) -> Tensor:
        self._network.eval()  # each time, as some networks cache what they derive from their weights until then
        buffers = {name: endpoint.buffers[name] for name in self._buffers if name in endpoint.buffers}
        tensors = {**dict(zip(self._names, endpoint.parameters, strict=True)), **buffers}
        with self._precision():
            logits: Tensor = functional_call(self._network, tensors, (images,))
        return probabilities(self._config, logits)
