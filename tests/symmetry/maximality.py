"""What did `infer` miss? A slow reference that does not know a single operator: it looks at gradients only.

A symmetry is a permutation P of the positions of some axes with f(Pθ) = f(θ) for all weights θ. Then F = Σ c·f with
random c, the same for all θ, has ∇F(Pθ) = P∇F(θ), and at a θ that P leaves as it is, P leaves the gradient as it is
too. So make θ constant along all axes that might move, and random elsewhere. Two positions of an axis whose slices of
the gradient differ cannot be exchanged by any such symmetry, whatever else it moves: that is a proof. Slices that agree
are a suspicion only, because the point is a special one; it is followed up at less special points, and in the end by
exchanging two positions and comparing outputs.

* Pinned axes (`_unproven`): all of them are made constant; those that are proven not to move are made random again,
  until nothing more is proven. What is left would have to move together. `_exchangeable` then asks less: may a symmetry
  act by one exchange alike on all parts of one size? `_exchanged_with` tries what is still possible.
* Groups (`_tied`): an occurrence that is random while the others are constant shows which of them cannot move
  without it. Where that does not connect all occurrences to each other, some of them could move on their own.

The gradient is exact up to rounding, which such points can amplify without limit (a layer norm of equal numbers divides
by nearly nothing). Each gradient is therefore computed twice, the second time with all weights changed by 1e-13, and a
difference counts only if it is far larger than what that does.

Not looked for: permutations that are no group of all exchanges, such as the mirror image of an axis (the kernel of an
efficient channel attention may be mirrored together with all channels), and symmetries of a pinned axis that would take
some occurrences of a group along, but not all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import permutations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from starzoo.symmetry.spec import Concat, Leaf, PermutationSpec, Pinned, Product, Term
from starzoo.symmetry.trace import copy_module

State = dict[str, Tensor]
DIFFERENT = 1e-10  # of the largest entry of a tensor's gradient
JITTER = 1e-13
MANY = 64  # closed sets of one group
EQUAL = 1e-9  # relative error of outputs
PROBES = 8  # how many random points at most; most questions are settled by two


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


Move = tuple[Part, Sequence[int], Sequence[int]]  # these positions of the part change places with those


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


def constant_along(
    state: Mapping[str, Tensor], parts: Iterable[Part], only: Mapping[Part, Sequence[Sequence[int]]] | None = None
) -> State:
    """The same weights, with all positions of each part made equal; for parts in `only`, those in each of its sets."""
    changed = dict(state)
    chosen = [(part, places or range(part.size)) for part in parts for places in (only or {}).get(part, [()])]
    for part, positions in chosen:
        tensor = changed[part.tensor] = changed[part.tensor].clone()
        moved = tensor.movedim(part.axis, 0)
        places = torch.from_numpy(part.places[:, list(positions)])
        block = moved[places]
        moved[places] = block[:, :1].expand_as(block)
    return changed


def exchanged(state: Mapping[str, Tensor], moves: Iterable[Move]) -> State:
    """The same weights, with some positions of some parts exchanged."""
    changed = dict(state)
    for part, first, second in moves:
        index = np.arange(changed[part.tensor].shape[part.axis])
        index[part.places[:, [*first, *second]]] = part.places[:, [*second, *first]]
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
        if any(value is torch.float32 for value in (*args, *kwargs.values())):
            args = [_wider(value) for value in args]
            kwargs = {name: _wider(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _wider(value):
    return torch.float64 if value is torch.float32 else value


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
        self.scale = 0.5 if seed % 2 else 1.0  # some networks saturate at one scale, some at another
        self.network, _ = copy_module(
            module, lambda each: (each.double() if each.is_floating_point() else each).clone()
        )
        tensors = self.network.state_dict(keep_vars=True)
        first = {id(tensor): name for name, tensor in reversed(tensors.items())}  # tied weights have one name
        self.state = {name: self._random(tensor) for name, tensor in tensors.items() if first[id(tensor)] == name}
        self.example = torch.randn((2, *example.shape[1:]), generator=rng, dtype=torch.float64)
        self.reference = self.output(self.state)
        self.direction = torch.randn(self.reference.shape, generator=rng, dtype=torch.float64)
        self.generic, _ = self.gradients(self.state)
        self.largest = max(float(each.abs().max()) for each in self.generic.values())

    def _random(self, tensor: Tensor) -> Tensor:
        """As in `verify`: signals stay of order one, statistics positive."""
        if not tensor.is_floating_point():
            return tensor.detach()
        if tensor.ndim < 2:
            size = torch.rand(tensor.shape, generator=self.rng, dtype=tensor.dtype) + 0.5
            sign = torch.randint(2, tensor.shape, generator=self.rng) * 2 - 1
            return size * sign if isinstance(tensor, nn.Parameter) else size
        fan_in = tensor.numel() // len(tensor) if len(tensor) > 1 else 1
        return torch.randn(tensor.shape, generator=self.rng, dtype=tensor.dtype).mul(self.scale / fan_in**0.5)

    def output(self, state: Mapping[str, Tensor]) -> Tensor:
        """All outputs as one vector."""
        self.network.train().eval()  # drops what some networks cache in evaluation mode: biases derived from weights
        with _InDouble():
            outputs = torch.func.functional_call(self.network, dict(state), (self.example,))
        return torch.cat([leaf.flatten() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)])

    def change(self, state: Mapping[str, Tensor]) -> float:
        """The relative error of the output with other weights."""
        with torch.no_grad():
            return float((self.output(state) - self.reference).norm() / self.reference.norm())

    def is_idle(self, part: Part) -> bool:
        """Whether the output does not depend on these entries of a tensor, such as the keys' bias before a softmax."""
        moved = self.generic[part.tensor].movedim(part.axis, 0)[torch.from_numpy(part.places)]
        if moved.abs().max() > 1e-10 * self.largest:
            return False
        changed = self.state[part.tensor].clone()
        changed.movedim(part.axis, 0)[torch.from_numpy(part.places)] += torch.rand(moved.shape, generator=self.rng)
        return self.change({**self.state, part.tensor: changed}) < 1e-12

    def keeps(self, moves: Sequence[Move]) -> bool:
        """Whether exchanging some positions changes weights but not the output."""
        other = exchanged(self.state, moves)
        moved = any(not torch.equal(other[part.tensor], self.state[part.tensor]) for part, _, _ in moves)
        return moved and self.change(other) < EQUAL

    def gradients(self, state: Mapping[str, Tensor]) -> tuple[State, dict[str, float]]:
        """The gradient of every floating tensor, and how far rounding may have changed it."""
        exact = self.gradients_once(state)
        jittered = {}
        for name, value in state.items():
            noise = torch.randn(value.shape, generator=self.rng, dtype=torch.float64) * JITTER
            jittered[name] = value * (1 + noise) if value.is_floating_point() else value
        other = self.gradients_once(jittered)
        return exact, {name: float((exact[name] - other[name]).abs().max()) for name in exact}

    def gradients_once(self, state: Mapping[str, Tensor]) -> State:
        leaves = {
            name: value.detach().clone().requires_grad_() if value.is_floating_point() else value
            for name, value in state.items()
        }
        floating = {name: value for name, value in leaves.items() if value.requires_grad and value.numel()}
        value = self.output(leaves) @ self.direction
        found = torch.autograd.grad(value, list(floating.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(floating, found, strict=True))


# Pinned parts

Pairs = dict[Part, np.ndarray]  # which positions of each part could not be told apart, shape (n, n)
Sets = Sequence[Sequence[int]]  # positions of a part that are made equal, set by set
ALL: Sets = ((),)  # stands for all positions of a part


def _agreeing(probe: Probe, parts: Collection[Part], only: Mapping[Part, Sets] | None = None) -> Pairs:
    """Pairs of positions whose slices agree where all parts are constant, but those in `only` in some sets only."""
    gradient, rounding = probe.gradients(constant_along(probe.state, parts, only))
    agreeing = {}
    for part in parts if only is None else only:
        rows = slices(gradient[part.tensor], part, parts)
        same = torch.cdist(rows, rows, p=float("inf")).numpy() <= _tolerance(gradient, rounding, part.tensor)
        idle = (slices(probe.generic[part.tensor], part, parts) == 0).all(-1).numpy()  # taps that only meet padding
        agreeing[part] = (same & ~(idle[:, :, None] & idle[:, None, :])).any(0) & ~np.eye(part.size, dtype=bool)
    return agreeing


def _tolerance(gradient: State, rounding: Mapping[str, float], tensor: str) -> float:
    return max(DIFFERENT * float(gradient[tensor].abs().max()), 30 * rounding[tensor])


def _unproven(probes: Iterable[Probe], parts: Pairs) -> Pairs:
    """What is left when gradients say what they can. Parts without any pair left are random from then on."""
    while True:
        before = len(parts)
        for probe in probes:
            if not parts:
                return {}
            agreeing = _agreeing(probe, parts)
            parts = {part: left for part, pairs in parts.items() if (left := pairs & agreeing[part]).any()}
        if len(parts) == before:
            return parts


@dataclass(frozen=True)
class Exchange:
    """Of an axis seen as (outer, n, inner): two of the n places change places, in all blocks alike."""

    outer: int
    n: int
    inner: int
    first: int
    second: int

    def positions(self) -> list[tuple[int, int]]:
        places = np.arange(self.outer * self.n * self.inner).reshape(self.outer, self.n, self.inner)
        return list(zip(places[:, self.first].ravel().tolist(), places[:, self.second].ravel().tolist(), strict=True))


def _exchanges(size: int) -> Iterator[list[Exchange]]:
    """All exchanges of an axis, in rounds that can be tried at once: no position occurs in two of a round."""
    divisors = [divisor for divisor in range(1, size + 1) if size % divisor == 0]
    for outer in divisors:
        for n in divisors[1:]:
            if size % (outer * n) == 0:
                circle = list(range(n + n % 2))  # a round-robin tournament
                for _ in range(len(circle) - 1):
                    half = len(circle) // 2
                    pairs = zip(circle[:half], circle[: half - 1 : -1], strict=True)
                    yield [Exchange(outer, n, size // (outer * n), *pair) for pair in pairs if max(pair) < n]
                    circle.insert(1, circle.pop())


def _exchangeable(probes: Iterable[Probe], parts: Collection[Part]) -> dict[Part, list[Exchange]]:
    """Suppose that a symmetry acts on one part by an exchange, and on others of its size by the same one or not at all.

    Then only the exchanged positions need to be equal, and the point is less special.
    """
    left: dict[Part, list[Exchange]] = {}
    for size in {part.size for part in parts}:
        alike = [part for part in parts if part.size == size]
        for together in _exchanges(size):
            possible = dict.fromkeys(alike, together)
            for probe in probes:  # all of a round at once, and what is left of it one by one
                possible = _still_possible(probe, parts, possible)
            for exchange in together:
                single = {part: [exchange] for part, exchanges in possible.items() if exchange in exchanges}
                for probe in probes:
                    single = _still_possible(probe, parts, single, alike)
                for part in single:
                    left.setdefault(part, []).append(exchange)
    return left


def _until_settled(step: Callable[[Collection[Part]], dict], parts: Collection[Part]) -> dict:
    """Repeat on what is left: the parts that are done stay where they are."""
    while len(left := step(parts)) < len(parts):
        parts = left
    return left


def _still_possible(probe: Probe, parts: Collection[Part], exchanges: Mapping[Part, list[Exchange]], alike=None):
    if not exchanges:
        return {}
    tried = list(dict.fromkeys(exchange for each in exchanges.values() for exchange in each))
    pairs = [pair for exchange in tried for pair in exchange.positions()]
    agreeing = _agreeing(probe, parts, dict.fromkeys(alike or exchanges, pairs))
    possible = {
        part: [each for each in tried if all(agreeing[part][pair] for pair in each.positions())] for part in exchanges
    }
    return {part: each for part, each in possible.items() if each}


def _exchanged_with(probes: Iterable[Probe], part: Part, exchange: Exchange, parts: Collection[Part]) -> list[Move]:
    """The positions that have to change places together with those of one part; nothing where outputs do not stay."""
    probe = next(iter(probes))

    def agree(constant: Collection[Part], only: Mapping[Part, Sets] | None = None) -> bool:
        only = None if only is None else {**dict.fromkeys(constant, ALL), **only}
        agreeing = _agreeing(probe, constant, only)[part]
        return all(agreeing[pair] for pair in exchange.positions())

    needed = list(parts)
    for other in parts:
        rest = [each for each in needed if each is not other]
        if other is not part and agree(rest):
            needed = rest
    own = tuple(zip(*exchange.positions(), strict=True))
    choices: list[list[Move]] = [[(part, *own)], [(part, *own)]]
    for other in needed:
        if other is part:
            continue
        if other.size == part.size:
            ways = [own, own]
        else:
            positions = range(other.size)
            lone = [p for p in positions if not agree(needed, {other: [[q for q in positions if q != p]]})]
            half = len(lone) // 2
            ways = [(lone[:half], lone[half:]), (lone[::2], lone[1::2])]
        for moves, way in zip(choices, ways, strict=True):
            moves.append((other, *way))
    for moves in choices:
        if all(len(first) == len(second) for _, first, second in moves) and all(p.keeps(moves) for p in probes):
            return moves
    return []


# Groups


def _nodes(spec: PermutationSpec, parts: Iterable[Part]) -> dict[str, list[Part]]:
    """The places at which each group meets a tensor, cut up as finely as they might move on their own.

    Blocks of a product are places of their own, since each could have its own permutation. Where each has, for a group
    within another one, all blocks are alike, and the first one stands for all.
    """
    nodes: dict[str, list[Part]] = {}
    leaves = [part for part in parts if isinstance(part.term, Leaf)]
    for part in leaves:
        group = spec.groups[part.term.group]
        places = part.places
        if group.within is not None:
            columns = places.transpose(0, 2, 1).reshape(-1, part.size)
            places = columns[_blocks(part, group.within, leaves)[columns[:, 0]] == 0][..., None]
        for outer in _pieces(len(places), 4):
            for inner in _pieces(places.shape[2], 1):
                piece = places[outer][:, :, inner]
                nodes.setdefault(group.name, []).append(Part(part.tensor, part.axis, part.term, piece))
    return nodes


def _blocks(part: Part, outer: str, leaves: Iterable[Part]) -> np.ndarray:
    """For each position of the axis of a part: in which block of the outer group it lies."""
    for other in leaves:
        if (other.tensor, other.axis, other.term) == (part.tensor, part.axis, Leaf(outer)):
            blocks = np.full(max(other.places.max(), part.places.max()) + 1, -1)
            blocks[other.places] = np.arange(other.size)[:, None]
            if (blocks[part.places] >= 0).all():
                return blocks
    raise AssertionError(f"{part}: not within {outer}")


def _pieces(count: int, most: int) -> list[list[int]]:
    """Each index on its own if there are few, else the first one and the rest."""
    if count <= most:
        return [[index] for index in range(count)]
    return [[0], list(range(1, count))]


def _tied(probe: Probe, nodes: Mapping[str, list[Part]]) -> dict[str, set[tuple[int, int]]]:
    """For each group: which of its nodes (first) cannot move unless another one (second) moves too.

    What moves some nodes of a group of n positions stays a symmetry after conjugation with the group. So if there is
    such a symmetry, there is one that turns any three positions around (or exchanges both, for n = 2), and it is enough
    that these are equal: the point is not very special. Groups are tried together, but each as if no other moved.
    """
    ties: dict[str, set[tuple[int, int]]] = {group: set() for group in nodes}
    chosen = {group: torch.randperm(each[0].size, generator=probe.rng)[:3].tolist() for group, each in nodes.items()}
    only = {node: [chosen[group]] for group, each in nodes.items() for node in each}
    _, rounding = probe.gradients(constant_along(probe.state, only, only))
    for turn in range(max(map(len, nodes.values()), default=0)):
        still = {group: each for group, each in nodes.items() if turn < len(each)}
        constant = [node for each in still.values() for node in each if node is not each[turn]]
        gradient = probe.gradients_once(constant_along(probe.state, constant, only))
        for group, each in still.items():
            for index, node in enumerate(each):
                if index != turn:
                    rows = slices(gradient[node.tensor], node, each)[:, chosen[group]]
                    if (rows - rows[:, :1]).abs().max() > _tolerance(gradient, rounding, node.tensor):
                        ties[group].add((index, turn))
    return ties


def _closed(count: int, ties: Collection[tuple[int, int]]) -> list[frozenset[int]]:
    """The sets of nodes that could move without the others, as far as ties tell; not the empty one and not all."""
    reach = np.eye(count, dtype=bool)
    for first, second in ties:
        reach[first, second] = True
    for middle in range(count):
        reach |= reach[:, [middle]] & reach[[middle]]
    smallest = {frozenset(np.flatnonzero(row).tolist()) for row in reach}
    closed = set(smallest)
    while len(closed) < MANY and (more := {first | second for first in closed for second in smallest} - closed):
        closed |= more
    return sorted((each for each in closed if len(each) < count), key=len)


def _could_be_one(parts: Iterable[Part]) -> dict[tuple[str, str], list[Part]]:
    """Pairs of groups that stand in one product, or in one concatenation, wherever they occur: as one long axis."""
    leaves = [part for part in parts if isinstance(part.term, Leaf)]
    occurrences = Counter(part.term.group for part in leaves)
    found: dict[tuple[str, str], list[Part]] = {}
    for first, second in permutations(leaves, 2):
        if (first.tensor, first.axis) == (second.tensor, second.axis) and first.term != second.term:
            joint = _joined(first.places, second.places)
            if joint is not None:
                pair = (first.term.group, second.term.group)
                found.setdefault(pair, []).append(Part(first.tensor, first.axis, Leaf(" and ".join(pair)), joint))
    return {pair: each for pair, each in found.items() if {occurrences[group] for group in pair} == {len(each)}}


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray | None:
    """The places of both as one axis, with those of the second next to each other."""
    outer, n, inner = second.shape
    if first.shape[0] == outer and first.shape[2] == inner and first.flat[0] < second.flat[0]:
        return np.concatenate([first, second], axis=1)
    if first.size == second.size and np.array_equal(first.ravel(), second.ravel()) and first.shape[2] == n * inner:
        return first.reshape(len(first), -1, inner)
    return None


def _in_one_block(parts: Iterable[Part]) -> Iterator[tuple[str, str, list[tuple[Part, Part | None]]]]:
    """Pairs of groups (inner, outer) of which the inner one occurs only in weights that the outer one permutes too.

    Yields:
        The two groups, and for each part of the inner one the part of the outer one that stands on another axis; None
        where it stands on the same axis, around it.
    """
    leaves = [part for part in parts if isinstance(part.term, Leaf)]
    names = dict.fromkeys(part.term.group for part in leaves)
    for inner, outer in permutations(names, 2):
        pairs = []
        for part in (part for part in leaves if part.term.group == inner):
            around = [other for other in leaves if other.tensor == part.tensor and other.term.group == outer]
            same = [other for other in around if np.isin(part.places, other.places).all() and other.axis == part.axis]
            elsewhere = [other for other in around if other.axis != part.axis]
            if not same and len(elsewhere) != 1:
                break
            pairs.append((part, None if same else elsewhere[0]))
        else:
            if any(elsewhere for _, elsewhere in pairs):
                yield inner, outer, pairs


def _exchanged_in_block(probe: Probe, outer: str, pairs: Iterable[tuple[Part, Part | None]], parts: Iterable[Part]):
    """Two positions of the inner group exchanged in the first block of the outer group, and in no other."""
    changed = dict(probe.state)
    for part, elsewhere in pairs:
        tensor = exchanged(changed, [(part, [0], [1])])[part.tensor]
        axis, block = (part.axis, None) if elsewhere is None else (elsewhere.axis, elsewhere.places[:, 0].ravel())
        if block is None:
            block = np.flatnonzero(_blocks(part, outer, [each for each in parts if isinstance(each.term, Leaf)]) == 0)
        index = torch.from_numpy(block)
        kept = changed[part.tensor].clone()
        kept.movedim(axis, 0)[index] = tensor.movedim(axis, 0)[index]
        changed[part.tensor] = kept
    return changed


# The answer


@dataclass(frozen=True)
class Report:
    """What was found, in parts of axes with more than one position.

    Attributes:
        free: How many are permuted by a group.
        proven: How many pinned ones cannot move, whatever else moves with them.
        excluded: How many pinned ones cannot be moved by exchanges, if parts of one size move alike.
        idle: Pinned parts that the output does not depend on.
        missed: Pinned parts that could be permuted, and those that would have to move with them.
        tied: Occurrences of a group that could move without its other occurrences.
        merged: Pairs of groups that could be one larger group.
        blockwise: Groups that could act differently in each block of another group, which stands on another axis of a
            weight: the inputs of a grouped convolution, whose weight is (groups × outputs, inputs of a group).
        undecided: Suspicions that could neither be confirmed nor dispelled.
    """

    free: int
    proven: int
    excluded: int
    idle: tuple[str, ...]
    missed: tuple[str, ...]
    tied: tuple[str, ...]
    merged: tuple[str, ...]
    blockwise: tuple[str, ...]
    undecided: tuple[str, ...]

    @property
    def share(self) -> float:
        """Parts that are free, of those that could be."""
        return self.free / (self.free + len(self.missed)) if self.free else 0.0


def find_missed(module: nn.Module, example_input: Tensor, spec: PermutationSpec) -> Report:
    """Compare a specification with what gradients and exchanges say of the network.

    Args:
        module: The network; it is not changed.
        example_input: What it is called with.
        spec: What `infer` found, with the output pinned.

    Returns:
        What `infer` missed, and what was shown.
    """
    probes = _Probes(module, example_input)
    parts = [part for part in parts_of(spec) if part.tensor in probes[0].generic]  # weights, and each of them once
    pinned = [part for part in parts if isinstance(part.term, Pinned)]
    idle = [part for part in pinned if probes.agree_that_idle(part)]
    left = _unproven(probes, {part: ~np.eye(part.size, dtype=bool) for part in pinned if part not in idle})
    possible = _until_settled(partial(_exchangeable, probes), left)
    missed, undecided = _confirmed(probes, possible, left)
    tied, open_ties = _find_tied(probes, _nodes(spec, parts))
    merged = [
        pair
        for pair, joint in _could_be_one(parts).items()
        if all(
            probe.keeps([(part, [spec.groups[pair[0]].size - 1], [part.size - 1]) for part in joint])
            for probe in probes
        )
    ]
    blockwise = [
        f"{inner} in {outer}"
        for inner, outer, pairs in _in_one_block(parts)
        if spec.groups[inner].within is spec.groups[outer].within is None
        and all(probe.change(_exchanged_in_block(probe, outer, pairs, parts)) < EQUAL for probe in probes)
    ]
    _slice_index.cache_clear()
    return Report(
        free=len(parts) - len(pinned),
        proven=len(pinned) - len(idle) - len(left),
        excluded=len(left) - len(possible),
        idle=tuple(map(str, idle)),
        missed=tuple(map(str, missed)),
        tied=tuple(tied),
        merged=tuple(map(" and ".join, merged)),
        blockwise=tuple(blockwise),
        undecided=(*map(str, undecided), *open_ties),
    )


class _Probes(Sequence[Probe]):
    """Random points, made when they are asked for."""

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        self._make = cache(partial(Probe, module, example))

    def __len__(self) -> int:
        return PROBES

    def __getitem__(self, seed: int) -> Probe:
        if not 0 <= seed < PROBES:
            raise IndexError(seed)
        return self._make(seed)

    def agree_that_idle(self, part: Part) -> bool:
        return self[0].is_idle(part) and self[1].is_idle(part)


def _confirmed(
    probes: Sequence[Probe], possible: Mapping[Part, list[Exchange]], parts: Collection[Part]
) -> tuple[list[Part], list[Part]]:
    """The parts for which an exchange keeps the output, and those for which none that was tried does."""
    missed: dict[Part, None] = {}
    for part in sorted(possible, key=lambda part: part.size):  # the smallest one tells how the others move
        for exchange in possible[part]:
            if part not in missed:
                missed.update((other, None) for other, _, _ in _exchanged_with(probes, part, exchange, parts))
    return list(missed), [part for part in possible if part not in missed]


def _find_tied(probes: Sequence[Probe], nodes: Mapping[str, list[Part]]) -> tuple[list[str], list[str]]:
    """Occurrences that can move without the rest of their group, and groups for which that was not found out."""
    nodes = {group: [node for node in each if not probes.agree_that_idle(node)] for group, each in nodes.items()}
    ties: dict[str, set[tuple[int, int]]] = {group: set() for group in nodes}
    left = {group: [] for group, each in nodes.items() if len(each) > 1}
    for probe in probes:
        for group, more in _tied(probe, {group: nodes[group] for group in left}).items():
            ties[group] |= more
        left = {group: sets for group in left if (sets := _closed(len(nodes[group]), ties[group]))}
        if not left:
            break
    tied = []
    for group, sets in left.items():
        for closed in sets:
            moves = [(nodes[group][index], [0], [1]) for index in closed]
            if all(probe.keeps(moves) for probe in probes):
                tied.append("; ".join(str(node) for node, _, _ in moves))
                break
    return tied, [group for group, sets in left.items() if len(sets) >= MANY]
