"""Index arrays of every place where a group's positions occur in the tensors of a network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from starzoo.symmetry.permutation import Index, gather
from starzoo.symmetry.spec import PermutationSpec
from starzoo.symmetry.terms import Concat, Leaf, Product, Term

__all__ = ["GroupOccurrence", "JointStep", "plan_steps"]


@dataclass(frozen=True, eq=False)
class GroupOccurrence:
    """The positions of one group along one axis of one tensor.

    Attributes:
        tensor: The tensor's name.
        axis: The axis.
        indices: Indices into the axis, shape (n, rest): row i lists those that belong to position i of the group. For a
            wreath group shape (h, n, rest), one layer per block of the outer group.
    """

    tensor: str
    axis: int
    indices: Index

    def rows(self, tensor: Tensor) -> Tensor:
        """One row of features per position of the group.

        Args:
            tensor: The tensor that `tensor` names, of any network of the architecture.

        Returns:
            Shape (n, features), or (h·n, features) for a wreath group.
        """
        rows = gather(tensor.movedim(self.axis, 0), 0, self.indices.reshape(-1))
        return rows.reshape(math.prod(self.indices.shape[:-1]), -1)


@dataclass(frozen=True, eq=False)
class JointStep:
    """Groups that are solved at once: an outer one, and groups within it of which no two describe the same positions.

    Attributes:
        outer: The outer group.
        inner: Those within it.
        occurrences: Where each of them occurs: every position that the outer group moves is in one occurrence.
        is_quadratic: Whether they occur twice in one tensor: on two axes, or twice at the same positions. Their part of
            an inner product is then not linear.
    """

    outer: str
    inner: tuple[str, ...]
    occurrences: Mapping[str, tuple[GroupOccurrence, ...]]
    is_quadratic: bool

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors that they move, in the order of the occurrences."""
        return tuple(dict.fromkeys(one.tensor for group in self.occurrences.values() for one in group))

    def restricted_to(self, tensors: Collection[str]) -> JointStep:
        """The same groups, with their occurrences in some tensors only.

        Args:
            tensors: The names of the tensors.

        Returns:
            The restricted step.
        """
        occurrences = {
            name: tuple(one for one in group if one.tensor in tensors) for name, group in self.occurrences.items()
        }
        return replace(self, occurrences=occurrences)


@dataclass(frozen=True)
class _LeafIndices:
    """One leaf of a term: the indices of the axis that belong to `group`, in order, and each one's position in it."""

    group: str
    indices: Index
    positions: Index


def plan_steps(spec: PermutationSpec) -> dict[str, tuple[JointStep, ...]]:
    """Divide the groups within every outer one into joint steps: all of them at once, or one after the other.

    Groups within an outer one are solved together with it, unless two of them describe the same positions. Channels
    that count as (block, a, b), where both a and b can be permuted, are an example: the gain of putting one block in
    the position of another then depends on both, and not linearly. Such groups take turns, and those whose turn it is
    not are carried along with the blocks.

    Args:
        spec: The symmetries of the network.

    Returns:
        For every outer group one step, or one for each group within it.
    """
    leaves = {
        (tensor, axis): list(_leaf_indices(term))
        for tensor, terms in spec.axes.items()
        for axis, term in enumerate(terms)
    }

    def find_occurrences(group: str, finer: Collection[str] = ()) -> tuple[GroupOccurrence, ...]:
        occurrences = (
            GroupOccurrence(tensor, axis, _indices(spec, leaf, leaves[tensor, axis], finer))
            for tensor, axis in spec.occurrences[group]
            for leaf in leaves[tensor, axis]
            if leaf.group == group
        )
        return tuple(one for one in occurrences if one.indices.size)

    def steps(outer: str) -> Iterator[JointStep]:
        inner = spec.inner_groups[outer]
        within = {name: find_occurrences(name) for name in inner}
        pairs = (pair for a, b in itertools.combinations(inner, 2) for pair in itertools.product(within[a], within[b]))
        for joint in [(name,) for name in inner] if any(_overlap(*pair) for pair in pairs) else [inner]:
            occurrences = {outer: find_occurrences(outer, joint), **{name: within[name] for name in joint}}
            every = itertools.chain.from_iterable(occurrences.values())
            is_quadratic = any(
                _overlap(one, other) or (one.tensor == other.tensor and one.axis != other.axis)
                for one, other in itertools.combinations(every, 2)
            )
            yield JointStep(outer=outer, inner=joint, occurrences=occurrences, is_quadratic=is_quadratic)

    return {name: tuple(steps(name)) for name, group in spec.groups.items() if group.within is None}


def _overlap(one: GroupOccurrence, other: GroupOccurrence) -> bool:
    """Whether two occurrences share an index of one axis."""
    on_one_axis = (one.tensor, one.axis) == (other.tensor, other.axis)
    return on_one_axis and np.intersect1d(one.indices, other.indices).size > 0


def _indices(
    spec: PermutationSpec, leaf: _LeafIndices, leaves: Collection[_LeafIndices], finer: Collection[str]
) -> Index:
    """The indices of an occurrence, without those that a finer group on the same axis describes."""
    group, indices, keys = spec.groups[leaf.group], leaf.indices, [leaf.positions]
    for other in leaves:
        if other.group in finer:
            is_left = ~np.isin(indices, other.indices)
            indices, keys = indices[is_left], [keys[0][is_left]]
    if not len(indices):
        return np.empty((0,), dtype=np.int64)
    shape: tuple[int, ...] = (group.size, -1)
    if group.within is not None:
        outer = next(o for o in leaves if o.group == group.within and np.isin(indices, o.indices).all())
        keys.append(outer.positions[np.searchsorted(outer.indices, indices)])  # lexsort: the last key leads
        shape = (spec.groups[group.within].size, group.size, -1)
    return indices[np.lexsort(keys)].reshape(shape)


def _leaf_indices(term: Term) -> Iterator[_LeafIndices]:
    match term:
        case Leaf(group, size):
            yield _LeafIndices(group, np.arange(size), np.arange(size))
        case Product(factors):
            sizes = [factor.size for factor in factors]
            for number, factor in enumerate(factors):
                before, after = math.prod(sizes[:number]), math.prod(sizes[number + 1 :])
                blocks = np.arange(before)[:, None, None] * sizes[number]
                for leaf in _leaf_indices(factor):
                    indices = (blocks + leaf.indices[:, None]) * after + np.arange(after)
                    positions = np.broadcast_to(leaf.positions[:, None], indices.shape)
                    yield _LeafIndices(leaf.group, indices.reshape(-1), positions.reshape(-1))
        case Concat(parts):
            offset = 0
            for part in parts:
                for leaf in _leaf_indices(part):
                    yield _LeafIndices(leaf.group, leaf.indices + offset, leaf.positions)
                offset += part.size
