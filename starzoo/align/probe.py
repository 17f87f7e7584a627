"""Run models on images: activations, losses and midpoint losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from starzoo.config import Method
from starzoo.errors import UsageError
from starzoo.models.batch_norm import has_batch_norm, reestimate_batch_norm
from starzoo.models.memory_format import as_channels_last, channels_last
from starzoo.models.weights import StateDict, interpolate
from starzoo.parallel import default_device

__all__ = ["Probe", "Response", "required"]

_CHANCE = 0.9  # of the loss of a model that answers blindly

Response = tuple[Tensor, ...]
"""What a module returns for some images, and perhaps how the network's output depends on it, in the same shape."""


class Probe:
    """Runs any weights of one architecture on the same images.

    Args:
        network: The architecture, which becomes the probe's own: its weights are overwritten and need no gradients any
            more, and it is brought to the current GPU, where there is one.
        images: Un-augmented training images in batches, each of shape (batch, channels, height, width).
        labels: Their classes, shape (images,).
    """

    def __init__(self, network: nn.Module, images: Sequence[Tensor], labels: Tensor) -> None:
        self.device = default_device()
        self.network = channels_last(network.to(self.device)).eval().requires_grad_(False)
        self.images = [as_channels_last(batch.to(self.device)) for batch in images]
        self.labels = labels.to(self.device)
        self._classes = 1  # known once a model has predicted

    def responses(
        self, state: StateDict, images: Tensor, modules: Collection[str], *, gradients: bool
    ) -> dict[str, Response]:
        """Run the network, and listen to some of its modules.

        Args:
            state: The weights.
            images: One of the batches.
            modules: The modules' names.
            gradients: Whether to run backward as well.

        Returns:
            For each module what it returns at its first call and, with gradients, the gradient with respect to that of
            one random combination of every image's outputs: always the same combinations, so that models compare.
        """
        self.network.load_state_dict(dict(state))
        self.network.eval()  # which drops what some networks cache of the weights before
        seen: dict[str, Tensor] = {}

        def listen(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
                if name in seen:
                    return None
                if gradients and not output.requires_grad:
                    output.requires_grad_()  # it does not depend on the images, and the outputs depend on it
                seen[name] = output
                return output.clone()  # what comes next may write into it

            return hook

        hooks = [self.network.get_submodule(name).register_forward_hook(listen(name)) for name in modules]
        try:
            with torch.set_grad_enabled(gradients):
                outputs = self.network(images.clone().requires_grad_(gradients)).float()
        finally:
            for hook in hooks:
                hook.remove()
        if not gradients or not seen:
            return {name: (output,) for name, output in seen.items()}
        combination = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)
        found = torch.autograd.grad(outputs, list(seen.values()), combination, materialize_grads=True)
        return {name: (output.detach(), gradient) for (name, output), gradient in zip(seen.items(), found, strict=True)}

    def loss(self, state: StateDict) -> float:
        """The cross-entropy of some weights, batch-norm statistics estimated anew.

        Args:
            state: The weights.

        Returns:
            The mean over the images, in nats.
        """
        self.network.load_state_dict(dict(state))
        self.network.eval()
        if has_batch_norm(self.network):
            reestimate_batch_norm(self.network, self.images)
        with torch.inference_mode():
            logits = torch.cat([self.network(batch).float() for batch in self.images])
        self._classes = logits.shape[1]
        return float(cross_entropy(logits, self.labels))

    def midpoint_loss(self, a: StateDict, b: StateDict) -> float:
        """The loss half-way between two models: what alignment is for.

        Args:
            a: A state dict.
            b: Another one.

        Returns:
            The mean over the images, in nats.
        """
        return self.loss(interpolate(a, b, 0.5))

    def are_connected(self, a: StateDict, b: StateDict) -> bool:
        """Whether the mean of two models is about as good as they are, as of two fine-tunes of one checkpoint.

        Args:
            a: A state dict.
            b: Another one, as it stands.

        Returns:
            True where the loss half-way is at most a tenth above that of the worse model, which is better than chance.
        """
        worse = max(self.loss(a), self.loss(b))
        return worse < _CHANCE * math.log(self._classes) and self.midpoint_loss(a, b) <= 1.1 * worse + 0.01


def required(probe: Probe | None, method: Method) -> Probe:
    """The probe that a method needs.

    Args:
        probe: What there is.
        method: The method of alignment.

    Returns:
        The same probe.

    Raises:
        UsageError: There is none.
    """
    if probe is None:
        raise UsageError(
            f"alignment by {method}",
            "runs the models on images, and there are none",
            hint="name a data set, or choose another method",
        )
    return probe
