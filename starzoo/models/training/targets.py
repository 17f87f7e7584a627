"""What a network learns from a batch: images and labels, mixed and smoothed, and the loss that compares them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from starzoo.config import OptimizationConfig
from starzoo.errors import UsageError

__all__ = ["Targets", "criterion", "mix_labels", "probabilities"]

_MIXUP = 4  # a stream of the seed, beside those of the draws of (source, t)


def criterion(config: OptimizationConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of logits and target probabilities, both of shape (batch, classes), in nats."""
    return binary_cross_entropy_with_logits if config.bce else cross_entropy


def probabilities(config: OptimizationConfig, logits: Tensor) -> Tensor:
    """Return the probabilities that a network's logits stand for, shape (batch, classes)."""
    return logits.float().sigmoid() if config.bce else logits.float().softmax(1)


def mix_labels(labels: Tensor, prediction: Tensor | None, kappa: float) -> Tensor:
    """Return ỹ = (y + κ·p) / (1 + κ): labels y, mixed with a prediction p of shape (batch, classes) if there is one."""
    if prediction is None:
        return labels
    y = one_hot(labels, prediction.shape[1]).to(prediction) if labels.ndim == 1 else labels
    return torch.lerp(y, prediction, kappa / (1 + kappa))


class Targets:
    """Turns images and labels into what the loss compares: timm's Mixup or CutMix, then label smoothing.

    Args:
        config: The shares of Mixup, CutMix and smoothing.
        classes: Number of classes.
        batch_size: Images of a batch, of which Mixup needs an even number.
        seed: Decides with the key of a batch how it is mixed.
    """

    def __init__(self, config: OptimizationConfig, classes: int, batch_size: int, seed: int) -> None:
        from timm.data import Mixup  # type: ignore[attr-defined]  # lacks a re-export

        self._seed, self._smoothing, self._classes = seed, config.label_smoothing, classes
        self._is_soft = config.bce or config.label_smoothing > 0
        self._mixup = None
        if config.mixup or config.cutmix:
            if batch_size % 2:
                problem = f"Mixup and CutMix mix pairs of images, and a batch has {batch_size}"
                raise UsageError("batch_size", problem, hint="use an even number of images for each batch or draw")
            self._mixup = Mixup(  # type: ignore[no-untyped-call]
                config.mixup,
                config.cutmix,
                prob=config.mixup_prob,
                switch_prob=config.mixup_switch_prob,
                label_smoothing=config.label_smoothing,
                num_classes=classes,
            )

    def __call__(self, images: Tensor, labels: Tensor, *key: int) -> tuple[Tensor, Tensor]:
        """Return images, and labels or probabilities of shape (batch, classes), by the key of the batch alone."""
        from timm.data.mixup import mixup_target

        if self._mixup:
            state = np.random.get_state()
            np.random.seed([self._seed, _MIXUP, *key])
            try:
                images, labels = self._mixup(images, labels)
            finally:
                np.random.set_state(state)
        elif self._is_soft:
            labels = mixup_target(labels, self._classes, smoothing=self._smoothing)  # type: ignore[no-untyped-call]
        return images, labels
