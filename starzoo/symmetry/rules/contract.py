"""Operators that multiply and sum: matrix products and convolutions.

Axes that are summed over, or that count independent products, must move together on both sides. They are also recorded
as one index space, which later decides whether an inner group may act differently in each outer block. So are the axes
that are left of each side: an axis that is summed over blocks must not have a permutation of its own in each of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from starzoo.symmetry.axes import Axes
from starzoo.symmetry.rules.elementwise import broadcast
from starzoo.symmetry.rules.registry import Contractions, Shape, rule
from starzoo.symmetry.terms import Pinned, Term, factorize, pin, product, unify


@rule("mm")
def mm(x: Axes, mat2: Axes, trace: Contractions) -> Axes:
    """out[n, m] = Σ_k x[n, k] mat2[k, m]."""
    for term in (unify(x[1], mat2[0]), x[0], mat2[1]):
        trace.contract(term)
    return Axes.of([x[0], mat2[1]])


@rule("bmm")
def bmm(x: Axes, mat2: Axes, trace: Contractions) -> Axes:
    """out[b, n, m] = Σ_k x[b, n, k] mat2[b, k, m]."""
    batch = unify(x[0], mat2[0])
    for term in (unify(x[2], mat2[1]), x[1], mat2[2]):
        trace.contract(batch, term)
    return Axes.of([batch, x[1], mat2[2]])


@rule("addmm")
def addmm(x: Axes, mat1: Axes, mat2: Axes, out: Shape, trace: Contractions) -> Axes:
    """A bias (any shape that broadcasts) and a matrix product."""
    return broadcast([x, mm(mat1, mat2, trace)], out)


@rule("baddbmm")
def baddbmm(x: Axes, batch1: Axes, batch2: Axes, out: Shape, trace: Contractions) -> Axes:
    """A bias (any shape that broadcasts) and a batched matrix product."""
    return broadcast([x, bmm(batch1, batch2, trace)], out)


@rule("mv", "dot")
def vector_product(tensors: list[Axes], trace: Contractions) -> Axes:
    """A matrix or vector times a vector."""
    left, right = tensors
    trace.contract(unify(left[-1], right[0]))
    return Axes.of(list(left)[:-1])


@rule("convolution")
def convolution(
    x: Axes,
    weight: Axes,
    bias: Axes | None,
    stride: Sequence[int],
    padding: Sequence[int],
    transposed: bool,
    groups: int,
    out: Shape,
    trace: Contractions,
) -> Axes:
    """Input channels (g, c), output channels (g, o): each group sums over its own c. Kernel and space are pinned."""
    group, inside = factorize(x[1], (groups, x.shape[1] // groups))
    if transposed:  # weight (g·c, o, *kernel)
        weight_group, weight_inside = factorize(weight[0], (groups, weight.shape[0] // groups))
        outside = weight[1]
    else:  # weight (g·o, c, *kernel)
        weight_group, outside = factorize(weight[0], (groups, weight.shape[0] // groups))
        weight_inside = weight[1]
    group = unify(group, weight_group)
    trace.contract(group, unify(inside, weight_inside))
    channels = product([group, outside])
    if bias is not None:
        channels = unify(channels, bias[0])
    space: list[Term] = []
    for axis, step, margin in zip(range(2, len(out)), stride, padding, strict=True):
        # Under a kernel of one position, with neither stride nor padding, positions are independent.
        is_pointwise = weight.shape[axis] == 1 and step == 1 and margin == 0 and x.shape[axis] == out[axis]
        space.append(x[axis] if is_pointwise else Pinned(out[axis], "space"))
        if not is_pointwise:
            pin(x[axis], "space")
            pin(weight[axis], "kernel")
    trace.contract(x[0], group, *space)
    return Axes.of([x[0], channels, *space])
