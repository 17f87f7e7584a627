"""Operators that compute each element of the result from the elements at the same position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

from starzoo.symmetry.axes import Axes
from starzoo.symmetry.rules.registry import Shape, rule
from starzoo.symmetry.terms import unify

__all__ = ["broadcast", "copy_into", "pointwise"]


@rule(
    "clone", "_to_copy", "alias", "detach", "lift_fresh", "lift_fresh_copy", "hardswish", "hardswish_", "floor_divide"
)
def pointwise(tensors: Sequence[Axes], out: Shape) -> Axes:
    """Axes that meet move together. One tensor alone, or with scalars, keeps its undecided splits."""
    wide = [tensor for tensor in tensors if math.prod(tensor.shape) != 1]
    if wide and wide[0].shape == out and all(tensor == wide[0] for tensor in wide):
        return wide[0]
    return broadcast(tensors, out)


@rule("copy_")
def copy_into(x: Axes, src: Axes, out: Shape) -> Axes:
    """The destination moves with the source."""
    return broadcast([x, src], out)


@rule("_assert_async")
def check(x: Axes) -> list[Axes]:
    """Nothing is computed."""
    return []


@rule("fill_", "zero_", "fill")
def fill(x: Axes) -> Axes:
    """A constant agrees with every permutation of the axes."""
    return x


def broadcast(tensors: Sequence[Axes], shape: Shape) -> Axes:
    """Unify the axes that meet when tensors are aligned at their last axes.

    Args:
        tensors: The tensors; an axis of length 1 that is stretched meets nothing.
        shape: The common shape.

    Returns:
        The axes of the result.
    """

    def meeting(axis: int) -> list[Axes]:
        return [tensor for tensor in tensors if len(tensor) >= -axis and tensor.shape[axis] == shape[axis]]

    return Axes.of(reduce(unify, (tensor[axis] for tensor in meeting(axis))) for axis in range(-len(shape), 0))
