"""Parts of axes: where their positions lie, how they are made equal or exchanged, and how slices are compared."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from starzoo.symmetry.spec import PermutationSpec
from starzoo.symmetry.terms import Concat, Leaf, Pinned, Product, Term

State = dict[str, Tensor]


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
        for leaf, places in _leaves(term)
        if places.shape[1] > 1
    ]


def _leaves(term: Term) -> Iterator[tuple[Leaf | Pinned, np.ndarray]]:
    match term:
        case Leaf() | Pinned():
            yield term, np.arange(term.size).reshape(1, -1, 1)
        case Concat(parts):
            offset = 0
            for part in parts:
                for leaf, places in _leaves(part):
                    yield leaf, places + offset
                offset += part.size
        case Product(factors):
            sizes = [factor.size for factor in factors]
            for position, factor in enumerate(factors):
                before, after = int(np.prod(sizes[:position])), int(np.prod(sizes[position + 1 :]))
                for leaf, places in _leaves(factor):
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
    index = torch.from_numpy(slice_index(tuple(gradient.shape), part, tuple(others)))
    padded = torch.cat([gradient.flatten(), gradient.new_tensor([float("inf")])])[index]
    if padded.shape[-1] > 1:
        padded = padded.sort(-1).values
    return padded.nan_to_num(posinf=0.0).flatten(2)


@cache
def slice_index(shape: tuple[int, ...], part: Part, others: tuple[Part, ...]) -> np.ndarray:
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
