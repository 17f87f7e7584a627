"""Where the positions of a group lie in the tensors of a network: a specification, turned into index arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starzoo.symmetry.spec import Concat, Leaf, PermutationSpec, Pinned, Product, Term

__all__ = ["View", "find_views"]

Places = NDArray[np.int64]

_ABSENT = -1


@dataclass(frozen=True, eq=False)
class View:
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


@dataclass(frozen=True)
class _Occurrence:
    """One leaf of a term: which position of `group` each index of the axis belongs to, or `_ABSENT`."""

    group: str
    coordinates: Places


def find_views(spec: PermutationSpec, group: str) -> tuple[View, ...]:
    """List every place at which a group meets a tensor.

    Positions of an outer group that a wreath group within it describes more finely belong to the inner group alone:
    what a block is worth at another block's place is then known only after the inner assignment.

    Args:
        spec: The symmetries of the network.
        group: The group's name.

    Returns:
        One view per leaf of the group, in the order of the state dict.
    """
    views = []
    for tensor, axis in spec.occurrences[group]:
        found = list(_occurrences(spec, spec.axes[tensor][axis]))
        for occurrence in found:
            if occurrence.group == group:
                places = _places(spec, occurrence, found)
                if places.size:
                    views.append(View(tensor, axis, places))
    return tuple(views)


def _places(spec: PermutationSpec, occurrence: _Occurrence, found: list[_Occurrence]) -> Places:
    group = spec.groups[occurrence.group]
    present = occurrence.coordinates != _ABSENT
    for other in found:
        if other.group in spec.inner_groups[group.name]:
            present = present & (other.coordinates == _ABSENT)
    order = np.flatnonzero(present)
    shape: tuple[int, ...] = (group.size, -1)
    keys = [occurrence.coordinates[order]]
    if group.within is not None:
        outer = next(o for o in found if o.group == group.within and (o.coordinates[order] != _ABSENT).all())
        keys.append(outer.coordinates[order])  # lexsort: the last key leads
        shape = (spec.groups[group.within].size, group.size, -1)
    return order[np.lexsort(keys)].reshape(shape) if len(order) else np.empty((0,), dtype=np.int64)


def _occurrences(spec: PermutationSpec, term: Term) -> Iterator[_Occurrence]:
    match term:
        case Leaf(group):
            yield _Occurrence(group, np.arange(spec.groups[group].size))
        case Pinned():
            return
        case Product(factors):
            sizes = [spec.term_size(factor) for factor in factors]
            for position, factor in enumerate(factors):
                before, after = int(np.prod(sizes[:position])), int(np.prod(sizes[position + 1 :]))
                for occurrence in _occurrences(spec, factor):
                    coordinates = np.tile(np.repeat(occurrence.coordinates, after), before)
                    yield _Occurrence(occurrence.group, coordinates)
        case Concat(parts):
            total, offset = spec.term_size(term), 0
            for part in parts:
                size = spec.term_size(part)
                for occurrence in _occurrences(spec, part):
                    coordinates = np.full(total, _ABSENT)
                    coordinates[offset : offset + size] = occurrence.coordinates
                    yield _Occurrence(occurrence.group, coordinates)
                offset += size
