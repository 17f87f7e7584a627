"""What did `infer` miss? A slow reference that does not know a single operator: it looks at gradients only.

A symmetry is a permutation P of the positions of some axes with f(Pθ) = f(θ) for all weights θ. Then F = Σ c·f with
random c, the same for all θ, has ∇F(Pθ) = P∇F(θ), and at a θ that P leaves as it is, P leaves the gradient as it is
too. So make θ constant along all axes that might move, and random elsewhere. Two positions of an axis whose slices of
the gradient differ cannot be exchanged by any such symmetry, whatever else it moves: that is a proof. Slices that agree
are a suspicion only, because the point is a special one; it is followed up at less special points, and in the end by
exchanging two positions and comparing outputs.

* Pinned axes (`_pinned_suspects`): all of them are made constant; those that are proven not to move are made random
  again, until nothing more is proven. What is left would have to move together.
* Groups (`_tied_suspects`): an occurrence that is random while the others are constant shows which of them cannot move
  without it. Where that does not connect all occurrences to each other, some of them could move on their own.

The gradient is exact up to rounding, which such points can amplify without limit (a layer norm of equal numbers divides
by nearly nothing). Each gradient is therefore computed twice, the second time with all weights changed by 1e-13, and a
difference counts only if it is far larger than what that does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from starzoo.symmetry.spec import Concat, Leaf, PermutationSpec, Pinned, Product, Term
from starzoo.symmetry.trace import copy_module

State = dict[str, Tensor]
DIFFERENT = 1e-7  # of the largest entry of a tensor's gradient
JITTER = 1e-13
SEEDS = (0, 1)


# Parts of axes


@dataclass(frozen=True, eq=False)
class Part:
    """A leaf of a term: a run of positions that move together or stay.

    Attributes:
        tensor: The tensor's name.
        axis: The axis.
        term: The leaf.
        places: Indices into the axis, shape (outer, n, inner): position i of the part lies at places[:, i, :].
    """

    tensor: str
    axis: int
    term: Leaf | Pinned
    places: np.ndarray

    @property
    def size(self) -> int:
        return self.places.shape[1]

    def __str__(self) -> str:
        outer, size, inner = self.places.shape
        what = self.term.group if isinstance(self.term, Leaf) else self.term.reason
        return f"{self.tensor}[{self.axis}] {outer}×({size})×{inner}: {what}"


def parts_of(spec: PermutationSpec) -> list[Part]:
    """Every leaf of every axis that has more than one position."""
    return [
        Part(tensor, axis, leaf, places)
        for tensor, terms in spec.axes.items()
        for axis, term in enumerate(terms)
        for leaf, places in _leaves(spec, term)
        if places.shape[1] > 1
    ]


def _leaves(spec: PermutationSpec, term: Term) -> Iterator[tuple[Leaf | Pinned, np.ndarray]]:
    match term:
        case Leaf() | Pinned():
            yield term, np.arange(spec.term_size(term)).reshape(1, -1, 1)
        case Concat(parts):
            offset = 0
            for part in parts:
                for leaf, places in _leaves(spec, part):
                    yield leaf, places + offset
                offset += spec.term_size(part)
        case Product(factors):
            sizes = [spec.term_size(factor) for factor in factors]
            for position, factor in enumerate(factors):
                before, after = int(np.prod(sizes[:position])), int(np.prod(sizes[position + 1 :]))
                for leaf, places in _leaves(spec, factor):
                    outer, n, inner = places.shape
                    rows = np.arange(before)[:, None, None, None, None] * sizes[position]
                    joint = (rows + places[None, ..., None]) * after + np.arange(after)
                    yield leaf, joint.reshape(before * outer, n, inner * after)


def constant_along(state: Mapping[str, Tensor], parts: Iterable[Part]) -> State:
    """The same weights, with all positions of each part made equal."""
    changed = dict(state)
    for part in parts:
        tensor = changed[part.tensor] = changed[part.tensor].clone()
        moved = tensor.movedim(part.axis, 0)
        places = torch.from_numpy(part.places)
        block = moved[places]
        moved[places] = block.mean(1, keepdim=True).expand_as(block)
    return changed


def exchanged(state: Mapping[str, Tensor], parts: Iterable[Part], first: int, second: int) -> State:
    """The same weights, with two positions of each part exchanged."""
    changed = dict(state)
    for part in parts:
        index = np.arange(changed[part.tensor].shape[part.axis])
        index[part.places[:, [first, second]]] = part.places[:, [second, first]]
        changed[part.tensor] = changed[part.tensor].index_select(part.axis, torch.from_numpy(index))
    return changed


def slices(gradient: Tensor, part: Part, moving: Collection[Part]) -> Tensor:
    """The gradient at each position of a part, up to what other moving parts of the same tensor could do to it.

    Args:
        gradient: The gradient of `part.tensor`.
        part: The part whose positions are compared.
        moving: Parts that may move too. Entries that these could carry into each other are sorted by value.

    Returns:
        Shape (blocks, n, entries): two positions can only be exchanged where they agree in some block.
    """
    others = [other for other in moving if other.tensor == part.tensor and other is not part]
    index = torch.from_numpy(_slice_index(tuple(gradient.shape), part, tuple(others)))
    padded = torch.cat([gradient.flatten(), gradient.new_tensor([float("inf")])])[index]
    if padded.shape[-1] > 1:
        padded = padded.sort(-1).values
    return padded.nan_to_num(posinf=0.0).flatten(2)


@cache
def _slice_index(shape: tuple[int, ...], part: Part, others: tuple[Part, ...]) -> np.ndarray:
    """Indices into the flat tensor, shape (blocks, n, keys, copies); one past the end where there are fewer copies."""
    orbits = [np.arange(size) for size in shape]  # of each position: the first position that others could carry it to
    for other in others:
        first = np.arange(shape[other.axis])
        first[other.places] = other.places[:, :1]
        orbits[other.axis] = first[orbits[other.axis]]
    coordinate, block = np.full(shape[part.axis], -1), np.zeros(shape[part.axis], dtype=np.int64)
    coordinate[part.places] = np.arange(part.size)[:, None]
    block[part.places] = orbits[part.axis][part.places[:, :1, :1]]
    own = np.arange(shape[part.axis])
    own[part.places] = orbits[part.axis][part.places[:, :1]]
    orbits[part.axis] = own
    keys = np.ravel_multi_index(np.ix_(*orbits), shape).ravel()
    along = np.indices(shape)[part.axis].ravel()
    inside = np.flatnonzero(coordinate[along] >= 0)
    order = inside[np.lexsort((keys[inside], coordinate[along[inside]], block[along[inside]]))]
    blocks = len(np.unique(block[part.places]))
    order = order.reshape(blocks, part.size, -1)
    new = np.diff(keys[order], axis=-1, prepend=-1) != 0
    run = np.cumsum(new, axis=-1) - 1
    starts = np.maximum.accumulate(np.where(new, np.arange(order.shape[-1]), 0), axis=-1)
    copies = np.arange(order.shape[-1]) - starts
    index = np.full((blocks, part.size, run.max() + 1, copies.max() + 1), len(keys))
    b, n, _ = np.indices(order.shape)
    index[b, n, run, copies] = order
    return index


# Gradients


class _InDouble(TorchFunctionMode):
    """Everything in float64, and batch norm by its formula, so that its statistics have a gradient too."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is functional.batch_norm and kwargs.get("running_mean", args[1] if len(args) > 1 else None) is not None:
            return _batch_norm(*args, **kwargs)
        if func is Tensor.float:
            return args[0].double()
        args, kwargs = tree_map(lambda value: torch.float64 if value is torch.float32 else value, (args, kwargs))
        return func(*args, **kwargs)


def _batch_norm(x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    assert not training
    shape = (1, -1, *[1] * (x.ndim - 2))
    x = (x - running_mean.view(shape)) / (running_var.view(shape) + eps).sqrt()
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


class Probe:
    """A network in float64 with random weights, whose gradient can be asked for.

    Attributes:
        state: Random weights and statistics.
    """

    def __init__(self, module: nn.Module, example: Tensor, seed: int) -> None:
        rng = self.rng = torch.Generator().manual_seed(seed)
        base, _ = copy_module(module, lambda each: (each.double() if each.is_floating_point() else each).clone())
        self.base = base
        self.state: State = {}
        drawn: dict[int, Tensor] = {}  # by tensor: tied weights get one value
        for name, tensor in base.state_dict(keep_vars=True).items():
            if id(tensor) not in drawn:
                drawn[id(tensor)] = self._random(tensor)
            self.state[name] = drawn[id(tensor)]
        self.tied = [name for name, value in self.state.items() if any(value is self.state[o] for o in self.state if o < name)]
        self.example = torch.randn((2, *example.shape[1:]), generator=rng, dtype=torch.float64)
        self.reference = self.output(self.state)
        self.direction = torch.randn(self.reference.shape, generator=rng, dtype=torch.float64)
        self.generic, _ = self.gradients(self.state)

    def _random(self, tensor: Tensor) -> Tensor:
        """As in `verify`: signals stay of order one, statistics positive."""
        if not tensor.is_floating_point():
            return tensor.detach()
        if tensor.ndim < 2:
            size = torch.rand(tensor.shape, generator=self.rng, dtype=tensor.dtype) + 0.5
            sign = torch.randint(2, tensor.shape, generator=self.rng) * 2 - 1
            return size * sign if isinstance(tensor, nn.Parameter) else size
        fan_in = tensor.numel() // len(tensor) if len(tensor) > 1 else 1
        return torch.randn(tensor.shape, generator=self.rng, dtype=tensor.dtype).div(fan_in**0.5)

    def output(self, state: Mapping[str, Tensor]) -> Tensor:
        """All outputs as one vector, of a copy that never ran: some networks cache what they derive from weights."""
        memo = {id(each): each for each in (*self.base.parameters(), *self.base.buffers())}
        fresh = copy.deepcopy(self.base, memo)
        with _InDouble():
            outputs = torch.func.functional_call(fresh, dict(state), (self.example,))
        return torch.cat([leaf.flatten() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)])

    def change(self, state: Mapping[str, Tensor]) -> float:
        """The relative error of the output with other weights."""
        with torch.no_grad():
            return float((self.output(state) - self.reference).norm() / self.reference.norm())

    def gradients(self, state: Mapping[str, Tensor]) -> tuple[State, dict[str, float]]:
        """The gradient of every floating tensor, and how far rounding may have changed it."""
        exact = self._gradients(state)
        jittered = {}
        for name, value in state.items():
            noise = torch.randn(value.shape, generator=self.rng, dtype=torch.float64) * JITTER
            jittered[name] = value * (1 + noise) if value.is_floating_point() else value
        other = self._gradients(jittered)
        return exact, {name: float((exact[name] - other[name]).abs().max()) for name in exact}

    def _gradients(self, state: Mapping[str, Tensor]) -> State:
        leaves = {
            name: value.detach().clone().requires_grad_() if value.is_floating_point() else value
            for name, value in state.items()
            if name not in self.tied
        }
        floating = {name: value for name, value in leaves.items() if value.requires_grad and value.numel()}
        value = self.output(leaves) @ self.direction
        found = torch.autograd.grad(value, list(floating.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(floating, found, strict=True))


# Pinned parts


def unproven(probes: Sequence[Probe], parts: Collection[Part]) -> dict[Part, np.ndarray]:
    """Which parts might move, as far as gradients tell, if only these parts and no others can move.

    Args:
        probes: The network at random points.
        parts: The parts; positions of all other axes are taken to stay.

    Returns:
        For each part that is not proven to stay: which pairs of its positions could not be told apart, shape (n, n).
    """
    left = {part: ~np.eye(part.size, dtype=bool) for part in parts}
    while True:
        before = len(left)
        same = [_indistinct(probe, left) for probe in probes]
        left = {part: np.logical_and.reduce([each[part] for each in same]).any(0) for part in left}
        left = {part: pairs for part, pairs in left.items() if pairs.any()}
        if len(left) == before:
            return left


def _indistinct(probe: Probe, parts: Collection[Part]) -> dict[Part, np.ndarray]:
    """Pairs of positions with equal slices where all parts are constant, by block: shape (blocks, n, n)."""
    gradient, rounding = probe.gradients(constant_along(probe.state, parts))
    return {
        part: _equal(slices(gradient[part.tensor], part, parts), gradient[part.tensor], rounding[part.tensor])
        & ~_without_influence(slices(probe.generic[part.tensor], part, parts))
        for part in parts
    }


def _equal(rows: Tensor, gradient: Tensor, rounding: float) -> np.ndarray:
    distance = torch.cdist(rows, rows, p=float("inf")).numpy()
    tolerance = max(DIFFERENT * float(gradient.abs().max()), 10 * rounding)
    return (distance <= tolerance) & ~np.eye(rows.shape[1], dtype=bool)


def _without_influence(generic: Tensor) -> np.ndarray:
    """Pairs of positions that the output does not depend on at all: kernel taps that only ever meet padding."""
    idle = (generic.abs().amax(-1) == 0).numpy()
    return idle[:, :, None] & idle[:, None, :]
