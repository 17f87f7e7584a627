"""The tensors by which each matching method compares models."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from starzoo.align.activation_features import ActivationFeatures
from starzoo.align.probe import Probe, required
from starzoo.align.weight_features import balanced, plain
from starzoo.config import Method
from starzoo.models.weights import StateDict
from starzoo.symmetry.spec import PermutationSpec

__all__ = ["Features"]


class Features:
    """Makes the tensors by which a method compares models.

    Weights, scaled; and, for the methods that run the models, responses. Beside a response, each row of which has norm
    1, a balanced weight, all of which has norm 1, decides only what no response shows: channels that never respond, and
    groups that stand in no module's result.

    Args:
        spec: The symmetries of the models.
        method: The method of alignment.
        probe: Runs the models; needed unless only weights are compared.
        models: How many models' evidence is kept at once: with many of them less is noted of each.

    Attributes:
        spec: The same symmetries, for the tensors of the evidence.

    Raises:
        UsageError: The method runs the models, and there is no probe.
    """

    def __init__(self, spec: PermutationSpec, method: Method, probe: Probe | None = None, *, models: int = 1) -> None:
        self._scale = plain if method == "weights" else balanced
        self._responses = None
        if method.startswith("activations"):
            gradients = method == "activations-gradients"
            self._responses = ActivationFeatures(spec, required(probe, method), gradients=gradients, models=models)
            spec = replace(spec, axes={**spec.axes, **self._responses.axes})
        self.spec = spec

    @property
    def device(self) -> torch.device:
        """Where responses are made; weights are compared on the CPU where there are none."""
        return self._responses.probe.device if self._responses else torch.device("cpu")

    def of(self, state: StateDict) -> dict[str, Tensor]:
        """The evidence about one model.

        Args:
            state: Its state dict.

        Returns:
            Tensors by name, with the axes of `spec`.
        """
        weights = self._scale(state)
        if self._responses is None:
            return weights
        return {**{name: tensor.to(self.device) for name, tensor in weights.items()}, **self._responses.of(state)}
