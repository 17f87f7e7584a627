"""The Starlight loss (Sonthalia et al., ICLR 2025, equation 3 and algorithm 1) and its gradient.

For the star θ*, sources θ_n aligned to it by π_n, images x and labels y,

    L(θ*) = [ E_{n,t} CE(ỹ_n, f((1 − t)·θ* + t·π_n(θ_n); x))  +  μ·E_n CE(ỹ_n, f(θ*; x)) ] / (1 + μ),
    ỹ_n = (y + κ·p_n(x)) / (1 + κ).

The first term is the paper's, and the second its option for the star itself. With κ the labels are mixed with what the
source predicts: as the cross-entropy is linear in ỹ, the star learns the ensemble's mean prediction from one source at
a time.

A mini-batch draws a source, and either a t or, with probability μ / (1 + μ), the star itself, which is t = 0: an
unbiased estimate of both terms by one pass (`starzoo.star.sampling`). The sources are constants, so by the chain rule
the gradient is (1 − t) times the gradient at the interpolated weights. Hence one *working copy* of the network is
enough: lerp the interpolated weights into it, scale the loss by (1 − t), go backward, and hand its gradients to the
star as they are. A step costs a plain SGD step and one lerp, and with κ one forward pass of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

__all__ = ["Backward", "StarlightLoss"]


class Backward(Protocol):
    """Accumulates a loss's gradients: `Accelerator.backward`, or `Tensor.backward` itself."""

    def __call__(self, loss: Tensor, /) -> object:
        """Accumulate the gradients of a scalar loss."""


class StarlightLoss:
    """The Starlight loss of one star.

    Args:
        star: The star's parameters θ*, which the optimizer updates.
        working: The network in which losses are evaluated; its parameters, in the same order, are overwritten.
        kappa: Weight κ of the source's prediction beside the label.
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
        kappa: float = 0.0,
        draws: int = 1,
        backward: Backward = Tensor.backward,
        hold: Callable[[], AbstractContextManager[object]] = nullcontext,
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.star = list(star)
        self.working = working
        self.copy = list(working.parameters())
        self.kappa = kappa
        self.draws = draws
        self.backward = backward
        self.hold = hold
        self.precision = precision

    def clear(self) -> None:
        """Forget the gradients of the step before, and free their memory."""
        for parameter in (*self.copy, *self.star):
            parameter.grad = None

    def accumulate(
        self,
        source: Sequence[Tensor],
        t: float,
        images: Tensor,
        labels: Tensor,
        prediction: Tensor | None = None,
        *,
        last: bool = True,
    ) -> Tensor:
        """Evaluate the loss on a mini-batch and add its gradient to the step's, in the star's `.grad`.

        Args:
            source: The aligned source's parameters π_n(θ_n), in the order of the star's.
            t: Place on the path, 0 at the star and 1 at the source.
            images: Shape (batch, channels, height, width).
            labels: Class indices, shape (batch,).
            prediction: The source's probabilities p_n(x), shape (batch, classes); without them κ is 0.
            last: Whether this is the step's last mini-batch, after which processes average their gradients.

        Returns:
            The cross-entropy of the labels y at the interpolated weights, in nats: a detached scalar.
        """
        with torch.no_grad():
            for copy, star, end in zip(self.copy, self.star, source, strict=True):
                torch.lerp(star, end, t, out=copy)
        with nullcontext() if last else self.hold():
            with self.precision():
                logits = self.working(images)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = cross_entropy(logits, self._target(labels, prediction))
            self.backward(loss * ((1 - t) / self.draws))
        for star, copy in zip(self.star, self.copy, strict=True):
            star.grad = copy.grad
        return loss.detach() if prediction is None else cross_entropy(logits.detach(), labels)

    def _target(self, labels: Tensor, prediction: Tensor | None) -> Tensor:
        """ỹ: the labels as they are, or mixed with a prediction."""
        if prediction is None:
            return labels
        truth = one_hot(labels, prediction.shape[1]).to(prediction)
        return torch.lerp(truth, prediction, self.kappa / (1 + self.kappa))
