"""Operators that only rearrange: views, permutations, parts, concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import accumulate, pairwise

from starzoo.symmetry.axes import Axes
from starzoo.symmetry.rules.registry import Shape, rule
from starzoo.symmetry.terms import Constant, Pinned, concat, factorize, pin, product, unify


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze", "squeeze_", "unsqueeze_", "flatten")
def reshape(x: Axes, out: Shape) -> Axes:
    """These operators keep the row-major order of the positions."""
    return x.reshape(out)


@rule("permute")
def permute(x: Axes, dims: Sequence[int]) -> Axes:
    """The axes in another order."""
    return x.permute(dims)


@rule("transpose", "transpose_")
def transpose(x: Axes, dim0: int, dim1: int) -> Axes:
    """Two axes are exchanged."""
    order = list(range(len(x)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return x.permute(order)


@rule("t", "t_")
def matrix_transpose(x: Axes) -> Axes:
    """The axes of a matrix are exchanged; a vector stays."""
    return x.permute(range(len(x))[::-1])


@rule("expand")
def expand(x: Axes, out: Shape) -> Axes:
    """A repeated axis is constant along itself; the others are kept, with their undecided splits."""
    added = len(out) - len(x)
    own = [None] * added + list(x.factors)
    stretched = Axes.of(map(Constant, out)).factors
    return Axes(tuple(f if f and f.size == size else s for f, s, size in zip(own, stretched, out, strict=True)))


@rule("as_strided", "as_strided_")
def as_strided(
    x: Axes, size: Shape, stride: Shape, storage_offset: int | None, layout: tuple[Shape, int]
) -> Axes | None:
    """Applies only where nothing but strides of axes of length 1 changes: the positions are the same as before."""
    strides, offset = layout
    steps = [pair for pair, length in zip(zip(strides, stride, strict=False), size, strict=False) if length != 1]
    same = tuple(size) == x.shape and all(old == new for old, new in steps) and storage_offset in {None, offset}
    return x if same else None


@rule("repeat")
def repeat(x: Axes, repeats: Sequence[int]) -> Axes:
    """An axis n that is repeated k times is (k, n), constant along k."""
    terms = [Pinned(1)] * (len(repeats) - len(x)) + list(x)
    return Axes.of(product([Constant(count), term]) for count, term in zip(repeats, terms, strict=True))


@rule("select")
def select(x: Axes, dim: int, index: int) -> Axes:
    """One position of an axis."""
    dim, index = dim % len(x), index % x.shape[dim]
    return x.narrow(dim, index, index + 1).drop(dim)


@rule("unbind")
def unbind(x: Axes, dim: int) -> list[Axes]:
    """Each position of an axis."""
    return [select(x, dim, index) for index in range(x.shape[dim])]


@rule("slice")
def slice_(x: Axes, dim: int, start: int | None, end: int | None, step: int, out: Shape) -> Axes:
    """A run of positions is a part; every k-th position is one in each block of k, and blocks may be permuted."""
    start, end, step = slice(start, end, step).indices(x.shape[dim])
    if step == 1:
        return x.narrow(dim % len(x), start, max(start, end))
    if start < step and out[dim] * step == x.shape[dim]:
        blocks, positions = factorize(x[dim], (out[dim], step))
        pin(positions, "strided slice")
        return x.replace(dim, blocks)
    pin(x[dim], "strided slice")
    return x.replace(dim, Pinned(out[dim], "strided slice"))


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk")
def split(x: Axes, dim: int, out: Sequence[Shape]) -> list[Axes]:
    """Runs of positions one after the other."""
    cuts = accumulate((shape[dim] for shape in out), initial=0)
    return [x.narrow(dim % len(x), start, stop) for start, stop in pairwise(cuts)]


@rule("cat")
def cat(tensors: Sequence[Axes], dim: int, out: Shape) -> Axes:
    """Along `dim` one after the other; the other axes move together."""
    joined = [tensor for tensor in tensors if len(tensor) == len(out)]  # torch accepts an empty vector in any cat
    columns = zip(*joined, strict=True)
    return Axes.of(
        concat(column) if axis == dim % len(out) else reduce(unify, column) for axis, column in enumerate(columns)
    )


@rule("stack")
def stack(tensors: Sequence[Axes], dim: int, out: Shape) -> Axes:
    """The axes move together; the new one counts the tensors."""
    terms = [reduce(unify, column) for column in zip(*tensors, strict=True)]
    terms.insert(dim % len(out), Pinned(len(tensors), "stack"))
    return Axes.of(terms)


@rule("constant_pad_nd")
def constant_pad(x: Axes, pad: Sequence[int], out: Shape) -> Axes:
    """Padding is constant; a negative pad crops, which pins the axis."""
    terms = list(x)
    for axis, (before, after) in zip(range(len(x))[::-1], zip(pad[::2], pad[1::2], strict=True), strict=False):
        if min(before, after) < 0:
            pin(terms[axis], "cropped")
            terms[axis] = Pinned(out[axis], "cropped")
        else:
            terms[axis] = concat([Constant(before), terms[axis], Constant(after)])
    return Axes.of(terms)


@rule("pixel_shuffle")
def pixel_shuffle(x: Axes, upscale_factor: int, out: Shape) -> Axes:
    """(C·r², H, W) to (C, H·r, W·r): the r² positions inside a pixel become space."""
    *batch, packed, height, width = x
    channels, positions = factorize(packed, (out[-3], upscale_factor**2))
    for term in (positions, height, width):
        pin(term, "pixel shuffle")
    return Axes.of([*batch, channels, *Axes.pinned(out[-2:], "pixel shuffle")])


@rule("pixel_unshuffle")
def pixel_unshuffle(x: Axes, downscale_factor: int, out: Shape) -> Axes:
    """(C, H·r, W·r) to (C·r², H, W)."""
    *batch, channels, height, width = x
    for term in (height, width):
        pin(term, "pixel shuffle")
    positions = Pinned(downscale_factor**2, "pixel shuffle")
    return Axes.of([*batch, product([channels, positions]), *Axes.pinned(out[-2:], "pixel shuffle")])
