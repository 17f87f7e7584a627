"""Operators for which the position along an axis has a meaning: space, indices, new tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from starzoo.symmetry.axes import Axes
from starzoo.symmetry.rules.registry import Shape, rule, shapes_of
from starzoo.symmetry.terms import Pinned, factorize, pin, product


def keep_in_place(x: Axes, dims: Sequence[int], out: Shape, reason: str) -> Axes:
    """Pin some axes, whose length may change, and keep the others.

    Args:
        x: The axes of the argument.
        dims: Which axes are pinned.
        out: The shape of the result.
        reason: Why they are pinned.

    Returns:
        The axes of the result.
    """
    pinned = {dim % len(x) for dim in dims} if len(x) else set()
    for axis in pinned:
        pin(x[axis], reason)
    return Axes.of(Pinned(out[axis], reason) if axis in pinned else term for axis, term in enumerate(x))


def resample(rank: int, x: Axes, out: Shape | Sequence[Shape]) -> list[Axes]:
    """Pooling, resizing, padding with copies: the last `rank` axes are space, and mix by their distance."""
    return [keep_in_place(x, range(-rank, 0), shape, "space") for shape in shapes_of(out)]


RESAMPLING = {
    1: ("avg_pool1d", "_adaptive_avg_pool1d", "reflection_pad1d", "replication_pad1d", "upsample_linear1d"),
    2: (
        *("avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "max_pool2d_with_indices"),
        *("reflection_pad2d", "replication_pad2d", "upsample_nearest2d", "_upsample_nearest_exact2d"),
        *("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
    ),
    3: ("avg_pool3d", "_adaptive_avg_pool3d", "max_pool3d_with_indices", "upsample_trilinear3d"),
}
for space, names in RESAMPLING.items():
    rule(*names)(partial(resample, space))


@rule("unfold")
def unfold(x: Axes, dimension: int, out: Shape) -> Axes:
    """Windows along one axis, and a last axis for the positions inside a window."""
    return Axes.of([*keep_in_place(x, [dimension], out[:-1], "space"), Pinned(out[-1], "space")])


@rule("im2col")
def im2col(x: Axes, out: Shape) -> Axes:
    """(…, C, H, W) to (…, C·k, L): the k positions of a window follow each channel, and L windows."""
    *batch, channels, height, width = x
    for term in (height, width):
        pin(term, "space")
    return Axes.of([*batch, product([channels, Pinned(out[-2] // channels.size, "space")]), Pinned(out[-1], "space")])


@rule("col2im")
def col2im(x: Axes, out: Shape) -> Axes:
    """(…, C·k, L) to (…, C, H, W): the windows are summed where they overlap."""
    *batch, packed, windows = x
    channels, positions = factorize(packed, (out[-3], packed.size // out[-3]))
    for term in (positions, windows):
        pin(term, "space")
    return Axes.of([*batch, channels, *Axes.pinned(out[-2:], "space")])


@rule("cumsum", "cumprod", "sort", "topk")
def scan(x: Axes, dim: int, out: Shape | Sequence[Shape]) -> list[Axes]:
    """The order along one axis matters."""
    return [keep_in_place(x, [dim], shape, "order matters") for shape in shapes_of(out)]


@rule("roll", "flip")
def roll(x: Axes, dims: Sequence[int], out: Shape) -> Axes:
    """The rolled axes are pinned; without `dims` the flattened tensor is rolled."""
    return keep_in_place(x, dims or range(len(x)), out, "roll")


@rule("index", "_unsafe_index")
def index(x: Axes, indices: Sequence[Axes | None], out: Shape) -> Axes:
    """Indexed axes are read by position; new axes replace them, or come first if the indexed ones are not adjacent."""
    indexed = [axis for axis, position in enumerate(indices) if position is not None]
    for position in indices:
        if position is not None:
            position.pin("index")
    for axis in indexed:
        pin(x[axis], "indexed")
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    remaining = [term for axis, term in enumerate(x) if axis not in indexed]
    first = indexed[0] if adjacent else 0
    new = Axes.pinned(out[first : first + len(out) - len(remaining)], "indexed")
    return Axes.of([*remaining[:first], *new, *remaining[first:]])


@rule("index_select")
def index_select(x: Axes, dim: int, index: Axes, out: Shape) -> Axes:
    """The axis is read by position."""
    index.pin("index")
    return keep_in_place(x, [dim], out, "indexed")


@rule("embedding")
def embedding(weight: Axes, indices: Axes, out: Shape) -> Axes:
    """The rows of the table are read by position."""
    indices.pin("index")
    pin(weight[0], "indexed")
    return Axes.of([*Axes.pinned(out[:-1], "indexed"), weight[1]])


@rule("empty", "zeros", "ones", "full", "empty_strided", "new_empty", "new_zeros", "new_ones", "new_full")
@rule("empty_like", "zeros_like", "ones_like", "full_like", "new_empty_strided")
def constant(out: Shape) -> Axes:
    """A constant agrees with every permutation. It may be written to later, so its axes are variables."""
    return Axes.fresh(out)


@rule(
    "arange", "linspace", "eye", "scalar_tensor", "rand", "randn", "randint", "randperm", "tril_indices", "triu_indices"
)
def positions(out: Shape) -> Axes:
    """Values that differ along the axes."""
    return Axes.pinned(out, "constant")
