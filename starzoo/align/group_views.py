"""Index arrays of every place where a group's positions occur in the tensors of a network."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starzoo.symmetry.spec import PermutationSpec
from starzoo.symmetry.terms import Concat, Leaf, Product, Term

__all__ = ["GroupOccurrence", "JointStep", "plan_steps"]

Places = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class GroupOccurrence:
    """The positions of one group along one axis of one tensor.

    Attributes:
        tensor: The tensor's name.
        axis: The axis.
        places: Indices into the axis, shape (n, rest): row i lists those that belong to position i of the group. For a
            wreath group shape (h, n, rest), one layer per block of the outer group.
    """

    tensor: str
    axis: int
    places: Places
    _gather: Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        flat = self.places.reshape(-1)
        in_order = np.array_equal(flat, np.arange(len(flat)))
        object.__setattr__(self, "_gather", None if in_order else torch.from_numpy(flat))

    def rows(self, tensor: Tensor) -> Tensor:
        """One row of features per position of the group.

        Args:
            tensor: The tensor that `tensor` names, of any network of the architecture.

        Returns:
            Shape (n, features), or (h·n, features) for a wreath group.
        """
        moved = tensor.movedim(self.axis, 0)
        if self._gather is not None or len(moved) != self.places.size:
            gather = torch.arange(self.places.size) if self._gather is None else self._gather
            moved = moved.index_select(0, gather.to(tensor.device))
        return moved.reshape(int(np.prod(self.places.shape[:-1])), -1)


@dataclass(frozen=True, eq=False)
class JointStep:
    """Groups that are solved at once: an outer one, and groups within it of which no two describe the same positions.

    Attributes:
        outer: The outer group.
        inner: Those within it.
        views: Where each of them meets the tensors: every position that the outer group moves is in one view.
        is_quadratic: Whether they lie twice in one tensor: on two axes, or twice at the same positions. What they
            add to an inner product is then not linear.
    """

    outer: str
    inner: tuple[str, ...]
    views: Mapping[str, tuple[GroupOccurrence, ...]]
    is_quadratic: bool

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors that they move, in the order of the views."""
        return tuple(dict.fromkeys(view.tensor for views in self.views.values() for view in views))

    def among(self, tensors: Collection[str]) -> JointStep:
        """The same where only some tensors count.

        Args:
            tensors: Their names.

        Returns:
            The groups, with their views of these tensors.
        """
        views = {name: tuple(view for view in each if view.tensor in tensors) for name, each in self.views.items()}
        return replace(self, views=views)


@dataclass(frozen=True)
class _Occurrence:
    """One leaf of a term: the indices of the axis that belong to `group`, in order, and each one's position in it."""

    group: str
    indices: Places
    positions: Places


def plan_steps(spec: PermutationSpec) -> dict[str, tuple[JointStep, ...]]:
    """Share out the groups within every outer one: all of them at once, or one after the other.

    Groups within an outer one are solved together with it, unless two of them describe the same positions, as channels
    that count as (block, a, b) do where both a and b can be permuted. What a block is worth at another one's place
    depends on both then, and not linearly. So they take turns, and those whose turn it is not go along with the blocks.

    Args:
        spec: The symmetries of the network.

    Returns:
        For every outer group one turn, or one for each group within it.
    """
    leaves = {
        (tensor, axis): list(_occurrences(term))
        for tensor, terms in spec.axes.items()
        for axis, term in enumerate(terms)
    }

    def views_of(group: str, finer: Collection[str]) -> tuple[GroupOccurrence, ...]:
        found = (
            GroupOccurrence(tensor, axis, _places(spec, leaf, leaves[tensor, axis], finer))
            for tensor, axis in spec.occurrences[group]
            for leaf in leaves[tensor, axis]
            if leaf.group == group
        )
        return tuple(view for view in found if view.places.size)

    def turns_of(outer: str) -> Iterator[JointStep]:
        inner = spec.inner_groups[outer]
        views = {name: views_of(name, ()) for name in inner}
        claims = [(view.tensor, view.axis, view.places, name) for name, each in views.items() for view in each]
        entangled = any(len(set(names)) > 1 for names in _who_shares(claims))
        for together in [(name,) for name in inner] if entangled else [inner]:
            mine = {outer: views_of(outer, together), **{name: views[name] for name in together}}
            flat = [view for each in mine.values() for view in each]
            places = {(view.tensor, view.axis) for view in flat}
            twice = any(True for _ in _who_shares([(view.tensor, view.axis, view.places, "") for view in flat]))
            on_two_axes = len(places) > len({tensor for tensor, _ in places})
            yield JointStep(outer=outer, inner=together, views=mine, is_quadratic=twice or on_two_axes)

    return {name: tuple(turns_of(name)) for name, group in spec.groups.items() if group.within is None}


def _who_shares(claims: Collection[tuple[str, int, Places, str]]) -> Iterator[tuple[str, str]]:
    """Whoever claims a position that another claim on the same axis of the same tensor has as well."""
    by_axis: dict[tuple[str, int], list[tuple[Places, str]]] = defaultdict(list)
    for tensor, axis, places, name in claims:
        by_axis[tensor, axis].append((places, name))
    for each in by_axis.values():
        for (a, one), (b, other) in itertools.combinations(each, 2):
            if np.intersect1d(a, b).size:
                yield one, other


def _places(
    spec: PermutationSpec, leaf: _Occurrence, leaves: Collection[_Occurrence], finer: Collection[str]
) -> Places:
    """The places of a view, but for those that a finer group on the same axis describes, which are its own."""
    group, indices, keys = spec.groups[leaf.group], leaf.indices, [leaf.positions]
    for other in leaves:
        if other.group in finer:
            left = ~np.isin(indices, other.indices)
            indices, keys = indices[left], [keys[0][left]]
    if not len(indices):
        return np.empty((0,), dtype=np.int64)
    shape: tuple[int, ...] = (group.size, -1)
    if group.within is not None:
        outer = next(o for o in leaves if o.group == group.within and np.isin(indices, o.indices).all())
        keys.append(outer.positions[np.searchsorted(outer.indices, indices)])  # lexsort: the last key leads
        shape = (spec.groups[group.within].size, group.size, -1)
    return indices[np.lexsort(keys)].reshape(shape)


def _occurrences(term: Term) -> Iterator[_Occurrence]:
    match term:
        case Leaf(group, size):
            yield _Occurrence(group, np.arange(size), np.arange(size))
        case Product(factors):
            sizes = [factor.size for factor in factors]
            for number, factor in enumerate(factors):
                before, after = math.prod(sizes[:number]), math.prod(sizes[number + 1 :])
                blocks = np.arange(before)[:, None, None] * sizes[number]
                for leaf in _occurrences(factor):
                    indices = (blocks + leaf.indices[:, None]) * after + np.arange(after)
                    positions = np.broadcast_to(leaf.positions[:, None], indices.shape)
                    yield _Occurrence(leaf.group, indices.reshape(-1), positions.reshape(-1))
        case Concat(parts):
            offset = 0
            for part in parts:
                for leaf in _occurrences(part):
                    yield _Occurrence(leaf.group, leaf.indices + offset, leaf.positions)
                offset += part.size
