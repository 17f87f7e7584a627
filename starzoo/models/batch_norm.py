"""Batch-norm statistics of points between state dicts.

A network at an interpolated point has other activations than either end. Its running statistics are therefore reset and
replaced by the cumulative mean over training images, augmented as in training. The exponential average of ordinary
training would still hold a fifth of its initial value after sixteen batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["has_batch_norm", "reestimate_batch_norm"]


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a network has running statistics that interpolation makes stale."""
    return any(True for _ in _tracking(model))


def reestimate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of every batch normalization by the mean over `batches`.

    All other layers stay in evaluation mode, so that dropout and stochastic depth do not disturb the estimate.
    """
    model.eval()
    with _estimating(model), torch.no_grad():
        for images in batches:
            model(images)


@contextmanager
def _estimating(model: nn.Module) -> Iterator[None]:
    layers = list(_tracking(model))
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # PyTorch's spelling of a cumulative mean
        layer.training = True  # not train(), which reaches into what timm nests in its layers, such as a dropout
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.training = False


def _tracking(model: nn.Module) -> Iterator[_BatchNorm]:
    return (module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats)
