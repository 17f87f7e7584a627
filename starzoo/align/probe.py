"""Run models on images: activations, losses and midpoint losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from starzoo.models.batch_norm import has_batch_norm, reestimate_batch_norm
from starzoo.models.memory_format import as_channels_last, channels_last
from starzoo.models.weights import StateDict, interpolate
from starzoo.parallel import default_device

__all__ = ["Activation", "Probe"]

_USEFUL_LOSS = 0.9  # of the loss of a model that predicts all classes alike

Activation = tuple[Tensor, ...]
"""A module's output for a batch and, with gradients, the gradient with respect to it, in the same shape."""


class Probe:
    """Runs any weights of one architecture on the same images.

    Args:
        network: The architecture. The probe owns it: it overwrites the weights, turns off their gradients and moves the
            network to the current GPU, where there is one.
        images: Un-augmented training images in batches, each of shape (batch, channels, height, width).
        labels: Their classes, shape (images,).
    """

    def __init__(self, network: nn.Module, images: Sequence[Tensor], labels: Tensor) -> None:
        self.device = default_device()
        self.network = channels_last(network.to(self.device)).eval().requires_grad_(False)
        self.images = [as_channels_last(batch.to(self.device)) for batch in images]
        self.labels = labels.to(self.device)
        self._classes = 1  # known after the first loss

    def activations(
        self, state: StateDict, images: Tensor, modules: Collection[str], *, gradients: bool
    ) -> dict[str, Activation]:
        """Run the network on a batch and record the outputs of some modules.

        Args:
            state: The weights.
            images: One of the batches.
            modules: The modules' names.
            gradients: Whether to run backward as well.

        Returns:
            For each module its output at its first call. With gradients also the gradient of one random combination of
            every image's logits with respect to that output; the combinations never change, so that models compare.
        """
        self._load(state)
        recorded: dict[str, Tensor] = {}

        def record(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
                if name in recorded:
                    return None
                if gradients and not output.requires_grad:
                    output.requires_grad_()  # it does not depend on the images, but the logits depend on it
                recorded[name] = output
                return output.clone()  # the next module may write into it

            return hook

        hooks = [self.network.get_submodule(name).register_forward_hook(record(name)) for name in modules]
        try:
            with torch.set_grad_enabled(gradients):
                logits = self.network(images.clone().requires_grad_(gradients)).float()
        finally:
            for hook in hooks:
                hook.remove()
        if not gradients or not recorded:
            return {name: (output,) for name, output in recorded.items()}
        combination = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
        by_module = torch.autograd.grad(logits, list(recorded.values()), combination, materialize_grads=True)
        return {
            name: (output.detach(), gradient)
            for (name, output), gradient in zip(recorded.items(), by_module, strict=True)
        }

    def loss(self, state: StateDict) -> float:
        """The cross-entropy of some weights, with re-estimated batch-norm statistics.

        Args:
            state: The weights.

        Returns:
            The mean over the images, in nats.
        """
        self._load(state)
        if has_batch_norm(self.network):
            reestimate_batch_norm(self.network, self.images)
        with torch.inference_mode():
            logits = torch.cat([self.network(batch).float() for batch in self.images])
        self._classes = logits.shape[1]
        return float(cross_entropy(logits, self.labels))

    def midpoint_loss(self, a: StateDict, b: StateDict) -> float:
        """The loss at the midpoint of two models, which alignment lowers.

        Args:
            a: A state dict.
            b: Another one.

        Returns:
            The mean over the images, in nats.
        """
        return self.loss(interpolate(a, b, 0.5))

    def are_connected(self, a: StateDict, b: StateDict) -> bool:
        """Whether the mean of two models is about as good as they are, as for two fine-tunes of one checkpoint.

        Args:
            a: A state dict.
            b: Another one, not aligned.

        Returns:
            True where the worse model is better than chance, and the midpoint loss at most a tenth above its loss.
        """
        worse = max(self.loss(a), self.loss(b))
        return worse < _USEFUL_LOSS * math.log(self._classes) and self.midpoint_loss(a, b) <= 1.1 * worse + 0.01

    def _load(self, state: StateDict) -> None:
        self.network.load_state_dict(dict(state))
        self.network.eval()  # which drops what some networks derive from their weights and cache
