"""The Starlight loss (Sonthalia et al., ICLR 2025, equation 3 and algorithm 1) and its gradient.

For the star θ*, sources θ_n aligned to it by π_n, images x and labels y,

    L(θ*) = [ E_{n,t} CE(ỹ_n, f((1 − t)·θ* + t·π_n(θ_n); x))  +  μ·E_n CE(ỹ_n, f(θ*; x)) ] / (1 + μ),
    ỹ_n = (y + κ·p_n(x)) / (1 + κ).

The first term is the paper's; the second is its option for the star's own loss. κ mixes the labels with the source's
prediction p_n: as the cross-entropy is linear in ỹ, the star distills the ensemble's mean prediction from one source at
a time. Where Mixup or CutMix mixes images, y is mixed alike, and p_n is the prediction for the mixed image. CE may also
be the mean over classes of the binary cross-entropy, which is linear in ỹ, too; then p_n are the sigmoids of the logits
instead of their softmax.

Each mini-batch draws a source, and either a t or, with probability μ / (1 + μ), the star itself, which is t = 0: one
pass is an unbiased estimate of both terms (`starzoo.star.sampling`). The sources are constants, so by the chain rule
the star's gradient is (1 − t) times the gradient at the interpolated weights. Hence one *working copy* of the network
is enough: lerp the interpolated weights into it, scale the loss by (1 − t), go backward, and give its gradients to the
star. A step costs a plain SGD step and one lerp, and with κ one forward pass of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from starzoo.models.training.targets import mix_labels

__all__ = ["StarlightLoss"]


class StarlightLoss:
    """The Starlight loss of one star.

    Args:
        star: The star's parameters θ*, which the optimizer updates.
        working: The network in which losses are evaluated; its parameters, in the same order, are overwritten.
        kappa: Weight κ of the source's prediction beside the label.
        criterion: CE, of logits and of class indices or probabilities.
        draws: Mini-batches per step on this process, each with a (source, t) of its own.
        backward: Accumulates the gradients of a scalar loss: `Accelerator.backward`, or `Tensor.backward` itself.
        no_sync: Delays the averaging of gradients over processes to the last backward pass of a step.
        precision: Autocasts the forward pass. Entered for each point, because autocast caches low-precision copies of
            weights, which are overwritten.
    """

    def __init__(
        self,
        star: Sequence[nn.Parameter],
        working: nn.Module,
        *,
        kappa: float = 0.0,
        criterion: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        draws: int = 1,
        backward: Callable[[Tensor], object] = Tensor.backward,
        no_sync: Callable[[], AbstractContextManager[object]] = nullcontext,
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.star = list(star)
        self.working = working
        self.point = list(working.parameters())
        self.kappa = kappa
        self.criterion = criterion
        self.draws = draws
        self.backward = backward
        self.no_sync = no_sync
        self.precision = precision

    def zero_grad(self) -> None:
        """Drop the gradients of the step before, and free their memory."""
        for parameter in (*self.point, *self.star):
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
            t: Position on the path, 0 at the star and 1 at the source.
            images: Shape (batch, channels, height, width).
            labels: Class indices of shape (batch,), or probabilities y of shape (batch, classes).
            prediction: The source's probabilities p_n(x), shape (batch, classes); without them κ is 0.
            last: Whether this is the step's last mini-batch, after which processes average their gradients.

        Returns:
            The cross-entropy of the labels y at the interpolated weights, in nats: a detached scalar.
        """
        with torch.no_grad():
            for point, star, endpoint in zip(self.point, self.star, source, strict=True):
                torch.lerp(star, endpoint, t, out=point)
        with nullcontext() if last else self.no_sync():
            with self.precision():
                logits = self.working(images)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = self.criterion(logits, mix_labels(labels, prediction, self.kappa))
            self.backward(loss * ((1 - t) / self.draws))
        for star, point in zip(self.star, self.point, strict=True):
            star.grad = point.grad
        return cross_entropy(logits.detach(), labels)
