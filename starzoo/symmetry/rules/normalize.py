"""Normalization, softmax and reductions: operators that treat all positions of some axes alike."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from starzoo.symmetry.axes import Axes
from starzoo.symmetry.rules.elementwise import broadcast
from starzoo.symmetry.rules.registry import Contractions, Shape, rule, shapes_of
from starzoo.symmetry.terms import Pinned, Term, factorize, pin, unify


def _with_channels(x: Axes, *vectors: Axes | None) -> Term:
    """The channel axis of `x`, moving together with every vector of one number per channel."""
    return reduce(unify, (vector[0] for vector in vectors if vector is not None), x[1])


BATCH_NORMS = (
    *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
    "cudnn_batch_norm",
)


@rule(*BATCH_NORMS)
def batch_norm(
    x: Axes,
    weight: Axes | None,
    bias: Axes | None,
    running_mean: Axes | None,
    running_var: Axes | None,
    out: Sequence[Shape],
) -> list[Axes]:
    """Statistics and affine parameters move with the channels, also where the batch's own statistics are used."""
    channels = _with_channels(x, weight, bias, running_mean, running_var)
    statistics = [Axes.of([channels]) if shape == (channels.size,) else Axes.pinned(shape, "") for shape in out[1:]]
    return [x.replace(1, channels), *statistics]


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(x: Axes, weight: Axes | None, bias: Axes | None, out: Sequence[Shape]) -> list[Axes]:
    """Affine parameters move with the last axes, over which the statistics are symmetric."""
    normed = broadcast([tensor for tensor in (x, weight, bias) if tensor is not None], out[0])
    return [normed, *(_reduced(normed, shape) for shape in out[1:])]


@rule("native_group_norm")
def group_norm(x: Axes, weight: Axes | None, bias: Axes | None, group: int, out: Sequence[Shape]) -> list[Axes]:
    """Channels (G, c): groups may change places, and the channels inside a group."""
    channels = _with_channels(x, weight, bias)
    groups, _ = factorize(channels, (group, channels.size // group))
    statistics = Axes.of([x[0], groups])
    return [x.replace(1, channels), statistics, statistics]


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax")
def softmax(x: Axes, dim: int, trace: Contractions) -> Axes:
    """The normalizing sum ignores the order; there is one for each position along the other axes."""
    terms = list(x)
    trace.contract(*(term for axis, term in enumerate(terms) if axis != dim % len(terms)))
    return Axes.of(terms)


@rule("sum", "mean", "amax", "amin", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm", "logsumexp")
@rule("prod", "any", "all")
def reduction(x: Axes, dim: int | Sequence[int] | None, out: Shape | Sequence[Shape]) -> list[Axes]:
    """The result ignores the order along the reduced axes."""
    dims = [dim] if isinstance(dim, int) else dim or range(len(x))
    reduced = {axis % len(x) for axis in dims}
    keepdim = [Pinned(1) if axis in reduced else term for axis, term in enumerate(x)]
    dropped = [term for axis, term in enumerate(x) if axis not in reduced]
    return [Axes.of(keepdim if len(shape) == len(x) else dropped) for shape in shapes_of(out)]


@rule("max", "min")
def extremum(x: Axes, dim: int | None, out: Shape | Sequence[Shape]) -> list[Axes]:
    """With `dim`, the position along that axis is returned too."""
    return reduction(x, dim, out) if dim is None else argument(x, dim, out)


@rule("argmax", "argmin", "median")
def argument(x: Axes, dim: int | None, out: Shape | Sequence[Shape]) -> list[Axes]:
    """A position along the reduced axes is returned."""
    for axis in range(len(x)) if dim is None else [dim]:
        pin(x[axis], "position is returned")
    return reduction(x, dim, out)


def _reduced(x: Axes, shape: Shape) -> Axes:
    return Axes.of(term if term.size == size else Pinned(size) for term, size in zip(x, shape, strict=True))
