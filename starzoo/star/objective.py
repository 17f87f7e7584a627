"""The Starlight loss (Sonthalia et al., ICLR 2025, equation 3 and algorithm 1) and its gradient.

For the star θ*, a source θ_n aligned to it, and t drawn for this mini-batch,

    L(θ*) = [ CE((1 − t)·θ* + t·π_n(θ_n)) + μ·CE(θ*) ] / (1 + μ).

The sources are constants, so by the chain rule the path term's gradient is (1 − t) times the gradient at the
interpolated weights. Hence one *working copy* of the network is enough: lerp the interpolated weights into it, scale
the loss by (1 − t), go backward, and hand its gradients to the star as they are. A step costs a plain SGD step and one
lerp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

__all__ = ["Backward", "StarlightLoss", "StepLosses"]


class Backward(Protocol):
    """Accumulates a loss's gradients: `Accelerator.backward`, or `Tensor.backward` itself."""

    def __call__(self, loss: Tensor, /) -> object:
        """Accumulate the gradients of a scalar loss."""


@dataclass(frozen=True)
class StepLosses:
    """The parts of one step's loss, detached scalars.

    Attributes:
        path: Cross-entropy at the interpolated weights, in nats.
        own: Cross-entropy at the star itself, in nats; None where μ = 0 spares its pass.
    """

    path: Tensor
    own: Tensor | None


class StarlightLoss:
    """The Starlight loss of one star.

    Args:
        star: The star's parameters θ*, which the optimiser updates.
        working: The network in which losses are evaluated; its parameters, in the same order, are overwritten.
        mu: Weight μ of the star's own loss.
        backward: Accumulates gradients in the working copy.
        hold: Holds back the averaging of gradients over ranks until the step's last backward pass.
    """

    def __init__(
        self,
        star: Sequence[nn.Parameter],
        working: nn.Module,
        *,
        mu: float = 0.0,
        backward: Backward = Tensor.backward,
        hold: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.star = list(star)
        self.working = working
        self.copy = list(working.parameters())
        self.mu = mu
        self.backward = backward
        self.hold = hold

    def accumulate(self, source: Sequence[Tensor], t: float, images: Tensor, labels: Tensor) -> StepLosses:
        """Evaluate the loss on a mini-batch and leave its gradient in the star's `.grad`.

        Args:
            source: The aligned source's parameters π_n(θ_n), in the order of the star's.
            t: Place on the path, 0 at the star and 1 at the source.
            images: Shape (batch, channels, height, width).
            labels: Class indices, shape (batch,).

        Returns:
            The losses that were evaluated.
        """
        self.working.zero_grad(set_to_none=True)
        own = None
        if self.mu:
            with self.hold():
                own = self._evaluate(self.star, 0.0, images, labels, weight=self.mu)
        path = self._evaluate(source, t, images, labels, weight=1.0)
        for star, copy in zip(self.star, self.copy, strict=True):
            star.grad = copy.grad
        return StepLosses(path, own)

    def _evaluate(self, source: Sequence[Tensor], t: float, images: Tensor, labels: Tensor, *, weight: float) -> Tensor:
        """Cross-entropy at (1 − t)·θ* + t·source, its gradient with respect to θ* accumulated with a weight."""
        with torch.no_grad():
            for copy, star, end in zip(self.copy, self.star, source, strict=True):
                torch.lerp(star, end, t, out=copy)
        loss = cross_entropy(self.working(images), labels)
        self.backward(loss * (weight * (1 - t) / (1 + self.mu)))
        return loss.detach()
