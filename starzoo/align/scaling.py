"""How much each tensor has to say in weight matching: the scale it is given before it is compared, and never keeps.

Every scaling commutes with permutation, so what is matched on scaled weights holds for the weights themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["balanced", "plain"]

StateDict = Mapping[str, Tensor]


def plain(state: StateDict) -> dict[str, Tensor]:
    """Every tensor as it is, running statistics included: Git Re-Basin's weight matching.

    Args:
        state: A state dict.

    Returns:
        The same tensors.
    """
    return dict(state)


def balanced(state: StateDict) -> dict[str, Tensor]:
    """Every weight with norm 1, so that each layer has one vote whatever its size and scale.

    As they are, the layer with the largest weights decides; and one-dimensional tensors decide more than they know,
    because the weights, biases and statistics of normalisation layers sort channels by size, not by what they detect.

    Args:
        state: A state dict.

    Returns:
        Tensors of two and more axes with Euclidean norm 1; zeros for the others.
    """
    return {
        name: tensor / tensor.norm().clamp_min(_tiny(tensor)) if _is_weight(tensor) else tensor * 0
        for name, tensor in state.items()
    }


def _tiny(tensor: Tensor) -> float:
    """Greater than nothing in the tensor's own precision: what is all zero stays so."""
    return torch.finfo(tensor.dtype).tiny


def _is_weight(tensor: Tensor) -> bool:
    return tensor.ndim > 1 and tensor.is_floating_point()
