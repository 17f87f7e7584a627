"""The tensors by which each matching method compares models."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from starzoo.align.activation_features import ActivationFeatures
from starzoo.align.probe import Probe
from starzoo.config import Method
from starzoo.errors import UsageError
from starzoo.models.weights import StateDict
from starzoo.symmetry.spec import PermutationSpec

__all__ = ["Features", "unit_norm_layers"]


class Features:
    """Extracts the tensors by which a method compares models.

    They are weights and, for the methods that run the models, activations. Each row of an activation has norm 1, and so
    has each whole layer of weights. Beside activations, weights therefore decide only where no activation does:
    channels that never respond, and groups that no module's output shows.

    Args:
        spec: The symmetries of the models.
        method: The method of alignment.
        probe: Runs the models; needed unless only weights are compared.
        models: How many models' features are in memory at once: the more there are, the smaller each one's sample.

    Attributes:
        spec: The same symmetries, for the tensors of the features.

    Raises:
        UsageError: The method runs the models, and there is no probe.
    """

    def __init__(self, spec: PermutationSpec, method: Method, probe: Probe | None = None, *, models: int = 1) -> None:
        self._method = method
        self._activations = None
        if method.startswith("activations"):
            if probe is None:
                raise UsageError(
                    f"alignment by {method}",
                    "runs the models on images, and there are none",
                    hint="name a data set, or choose another method",
                )
            gradients = method == "activations-gradients"
            self._activations = ActivationFeatures(spec, probe, gradients=gradients, models=models)
            spec = replace(spec, axes={**spec.axes, **self._activations.axes})
        self.spec = spec

    @property
    def device(self) -> torch.device:
        """The probe's device; the CPU where only weights are compared."""
        return self._activations.probe.device if self._activations else torch.device("cpu")

    def extract(self, state: StateDict) -> dict[str, Tensor]:
        """Extract the features of one model.

        Args:
            state: Its state dict.

        Returns:
            Tensors by name, with the axes of `spec`.
        """
        weights = dict(state) if self._method == "weights" else unit_norm_layers(state)
        if self._activations is None:
            return weights
        weights = {name: tensor.to(self.device) for name, tensor in weights.items()}
        return {**weights, **self._activations.extract(state)}


def unit_norm_layers(state: StateDict) -> dict[str, Tensor]:
    """Scale every weight tensor to norm 1, so that each layer counts alike whatever its size and scale.

    Without this the layer with the largest weights decides. One-dimensional tensors would decide more than they know:
    the weights, biases and statistics of normalization layers sort channels by size, not by what they detect. Scaling
    commutes with permutation, so a match of scaled weights is a match of the weights.

    Args:
        state: A state dict.

    Returns:
        Tensors of two and more axes with Euclidean norm 1; zeros for the others.
    """
    scaled: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.ndim > 1 and tensor.is_floating_point():
            scaled[name] = tensor / tensor.norm().clamp_min(torch.finfo(tensor.dtype).tiny)  # zeros stay zeros
        else:
            scaled[name] = torch.zeros_like(tensor)
    return scaled
