"""The star while it is fitted: its parameters, and the network in which points of its paths are evaluated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from starzoo.config import RunConfig
from starzoo.models.architecture import Architecture
from starzoo.models.batch_norm import reestimate_batch_norm
from starzoo.models.memory_format import channels_last
from starzoo.models.weights import StateDict

if TYPE_CHECKING:
    from starzoo.data.task import ImageTask

__all__ = ["StarNetwork"]


class StarNetwork:
    """The star's parameters and a working copy of its network.

    Attributes:
        module: The working copy. Its weights are overwritten at every point, and its running statistics are those of
            the last paths: they are the star's only once they are re-estimated.
        parameters: The star's own parameters, by name, which the optimizer updates.
    """

    def __init__(
        self,
        architecture: Architecture,
        initial_weights: Callable[[StateDict], StateDict],
        data: ImageTask,
        config: RunConfig,
        device: torch.device,
    ) -> None:
        from accelerate.utils import broadcast

        self.device = device
        self._batch_norm_images = functools.partial(data.batch_norm_images, config.evaluate)
        self._memory_format = torch.channels_last if config.star.channels_last else torch.contiguous_format
        torch.manual_seed(config.star.seed)
        self.module = architecture.build().to(device)
        random = {name: tensor.cpu() for name, tensor in self.module.state_dict().items()}
        self.module.load_state_dict(dict(initial_weights(random)))
        if config.star.channels_last:
            channels_last(self.module)
        self.parameters = {name: nn.Parameter(value.detach().clone()) for name, value in self.module.named_parameters()}
        broadcast([parameter.data for parameter in self.parameters.values()])  # equal on all processes to the last bit

    def to_device(self, images: Tensor) -> Tensor:
        """Move a batch to the device, in the memory format of the network."""
        return images.to(self.device, memory_format=self._memory_format, non_blocking=True)

    def state_dict(self, weights: Mapping[str, Tensor], *, reestimate: bool) -> dict[str, Tensor]:
        """Return the state dict of some weights on the CPU, with batch-norm statistics re-estimated or stale."""
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(weights[name])
        if reestimate:
            reestimate_batch_norm(self.module, map(self.to_device, self._batch_norm_images()))
        return {name: tensor.detach().cpu().clone() for name, tensor in self.module.state_dict().items()}

    def is_finite(self) -> bool:
        """Whether all parameters are finite: the gradient of a finite loss need not be."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.parameters.values())
