"""The Starlight loss (Sonthalia et al., ICLR 2025, equation 3 and algorithm 1) and its gradient.

For the star θ*, a source θ_n aligned to it, and t drawn for this mini-batch (x, y),

    L(θ*) = [ CE(y, f((1 − t)·θ* + t·π_n(θ_n); x))  +  μ·CE(y, f(θ*; x))  +  κ·CE(p_n(x), f(θ*; x)) ] / (1 + μ + κ).

The first term is the paper's, the second its option for the star itself. The third distils the prediction p_n of the
drawn source: as the cross-entropy is linear in it, its mean over the draws is that of the ensemble's mean prediction.

The sources are constants, so by the chain rule the path term's gradient is (1 − t) times the gradient at the
interpolated weights. Hence one *working copy* of the network is enough: lerp the interpolated weights into it, scale
the loss by (1 − t), go backward, and hand its gradients to the star as they are. A step costs a plain SGD step and one
lerp; the terms at the star share a second pass.
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
    """The parts of a step's loss, detached scalars.

    Attributes:
        path: Cross-entropy at the interpolated weights, in nats.
        own: Cross-entropy at the star itself, in nats; None where μ = κ = 0 spares its pass.
    """

    path: Tensor
    own: Tensor | None


class StarlightLoss:
    """The Starlight loss of one star.

    Args:
        star: The star's parameters θ*, which the optimiser updates.
        working: The network in which losses are evaluated; its parameters, in the same order, are overwritten.
        mu: Weight μ of the star's own loss.
        kappa: Weight κ of distillation.
        draws: How many mini-batches, each with a (source, t) of its own, share one step on this process.
        backward: Accumulates gradients in the working copy.
        hold: Holds back the averaging of gradients over processes until the step's last backward pass.
        precision: In which the network is evaluated. Entered anew for each point: autocast would go on with the
            low-precision copies of weights that have been overwritten since.
    """

    def __init__(
        self,
        star: Sequence[nn.Parameter],
        working: nn.Module,
        *,
        mu: float = 0.0,
        kappa: float = 0.0,
        draws: int = 1,
        backward: Backward = Tensor.backward,
        hold: Callable[[], AbstractContextManager[object]] = nullcontext,
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.star = list(star)
        self.working = working
        self.copy = list(working.parameters())
        self.mu, self.kappa = mu, kappa
        self.draws = draws
        self.backward = backward
        self.hold = hold
        self.precision = precision

    def clear(self) -> None:
        """Forget the gradients of the step before."""
        self.working.zero_grad(set_to_none=True)

    def accumulate(
        self,
        source: Sequence[Tensor],
        t: float,
        images: Tensor,
        labels: Tensor,
        prediction: Tensor | None = None,
        *,
        last: bool = True,
    ) -> StepLosses:
        """Evaluate the loss on a mini-batch and add its gradient to the step's, in the star's `.grad`.

        Args:
            source: The aligned source's parameters π_n(θ_n), in the order of the star's.
            t: Place on the path, 0 at the star and 1 at the source.
            images: Shape (batch, channels, height, width).
            labels: Class indices, shape (batch,).
            prediction: The source's probabilities p_n(x), shape (batch, classes); needed for κ > 0.
            last: Whether this is the step's last mini-batch, after which processes average their gradients.

        Returns:
            The losses that were evaluated.
        """
        own = None
        targets = [(self.mu, labels)] if self.mu else []
        if self.kappa and prediction is not None:
            targets.append((self.kappa, prediction))
        if targets:
            with self.hold():
                own = self._evaluate(self.star, 0.0, images, targets)
        with nullcontext() if last else self.hold():
            path = self._evaluate(source, t, images, [(1.0, labels)])
        for star, copy in zip(self.star, self.copy, strict=True):
            star.grad = copy.grad
        return StepLosses(path, own)

    def _evaluate(
        self, source: Sequence[Tensor], t: float, images: Tensor, targets: Sequence[tuple[float, Tensor]]
    ) -> Tensor:
        """Add the weighted gradients at (1 − t)·θ* + t·source with respect to θ*; the loss for the first target."""
        with torch.no_grad():
            for copy, star, end in zip(self.copy, self.star, source, strict=True):
                torch.lerp(star, end, t, out=copy)
        with self.precision():
            logits = self.working(images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = [cross_entropy(logits, target) for _, target in targets]
        weighted = torch.stack([weight * loss for (weight, _), loss in zip(targets, losses, strict=True)]).sum()
        self.backward(weighted * ((1 - t) / (1 + self.mu + self.kappa) / self.draws))
        return losses[0].detach()
