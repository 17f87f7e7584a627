"""A permutation of a whole network: one index vector per group.

Indices gather: ``new[i] = old[index[i]]``. A wreath group within an outer group of h blocks has an (h, n) array whose
row i is the permutation inside the block that is at position i *after* the outer permutation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starzoo.errors import IncompatibleError, UntrustedInputError
from starzoo.symmetry.spec import PermutationSpec
from starzoo.symmetry.terms import Concat, Leaf, Pinned, Product, Term, groups_of

__all__ = ["Index", "Permutation", "gather"]

Index = NDArray[np.int64]
StateDict = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Permutation:
    """An element of a network's permutation group.

    Attributes:
        spec: The symmetries of the network.
        indices: For every group its index vector, shape (n,), or (h, n) for a group within one of h blocks.
    """

    spec: PermutationSpec
    indices: Mapping[str, Index]

    @classmethod
    def identity(cls, spec: PermutationSpec) -> Permutation:
        """The permutation that moves nothing."""
        indices = {}
        for name, group in spec.groups.items():
            blocks = () if group.within is None else (spec.groups[group.within].size, 1)
            indices[name] = np.tile(np.arange(group.size), blocks)
        return cls(spec, indices)

    @classmethod
    def random(cls, spec: PermutationSpec, rng: np.random.Generator) -> Permutation:
        """A uniformly random element.

        Args:
            spec: The symmetries of the network.
            rng: The source of randomness.

        Returns:
            The permutation.
        """
        identity = cls.identity(spec).indices
        return cls(spec, {name: rng.permuted(index, axis=-1) for name, index in identity.items()})

    @classmethod
    def from_tensors(cls, spec: PermutationSpec, tensors: StateDict, *, subject: str = "") -> Permutation:
        """Read the index vectors that `to_tensors` wrote, and check that they are permutations of the right shape.

        Args:
            spec: The symmetries of the network.
            tensors: One integer tensor per group.
            subject: The file that the tensors come from, for the error message.

        Returns:
            The permutation.

        Raises:
            UntrustedInputError: A group is missing, unknown or not a permutation.
        """
        integers = {torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64}
        indices = {
            name: tensor.numpy().astype(np.int64) for name, tensor in tensors.items() if tensor.dtype in integers
        }
        for name, identity in cls.identity(spec).indices.items():
            index = indices.get(name)
            if index is None or index.shape != identity.shape or (np.sort(index, axis=-1) != identity).any():
                raise UntrustedInputError(
                    subject or "permutations",
                    f"group {name!r}: expected a permutation of shape {identity.shape}",
                    hint="fetch the file again",
                )
        if unknown := tensors.keys() - spec.groups.keys():
            raise UntrustedInputError(
                subject or "permutations",
                f"unknown group {min(unknown)!r}",
                hint="use the file of a star of this architecture",
            )
        return cls(spec, {name: indices[name] for name in spec.groups})

    def to_tensors(self) -> dict[str, Tensor]:
        """One int32 tensor per group, as stored in `permutations.safetensors`."""
        return {name: torch.from_numpy(index.astype(np.int32)) for name, index in self.indices.items()}

    def index(self, term: Term) -> Index:
        """The index vector of an axis that `term` describes.

        Args:
            term: A term of the specification's axes.

        Returns:
            The vector that gathers the axis, shape (length of the axis,).
        """
        return _index(self, term, {})

    def apply(self, state: StateDict, *, only: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Permute parameters and buffers.

        Args:
            state: A state dict of the network.
            only: Tensor names to return; all of them when not given.

        Returns:
            New tensors where anything moved, the given tensors elsewhere, in the order of `state`.

        Raises:
            IncompatibleError: A tensor has other axes than the specification says.
        """
        names = state.keys() if only is None else only
        return {name: self._apply_to(name, state[name]) for name in names}

    def apply_to_outputs(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Permute the network's outputs as they are permuted when its weights are.

        Args:
            outputs: The tensors that the network returned, in the order of `spec.outputs`.

        Returns:
            New tensors where anything moved: all are as they were if the output was pinned.

        Raises:
            IncompatibleError: An axis that moves is not of the traced length: the network merges it with the batch.
        """
        moved = []
        for tensor, terms in zip(outputs, self.spec.outputs, strict=True):
            for axis, term in enumerate(terms):
                if any(groups_of(term)):
                    if tensor.shape[axis] != term.size:
                        raise IncompatibleError(
                            f"output of shape {tuple(tensor.shape)}",
                            f"expected {term.size} positions on axis {axis}, as in the trace of a batch of one",
                            hint="check a batch of one",
                        )
                    tensor = gather(tensor, axis, self.index(term))
            moved.append(tensor)
        return moved

    def _apply_to(self, name: str, tensor: Tensor) -> Tensor:
        for axis, term in enumerate(self.spec.axes.get(name, ())):
            if axis >= tensor.ndim or tensor.shape[axis] != term.size:
                raise IncompatibleError(
                    name,
                    f"expected {term.size} positions on axis {axis}, got shape {tuple(tensor.shape)}",
                    hint="use models of one architecture with the same arguments",
                )
            tensor = gather(tensor, axis, self.index(term))
        return tensor

    def compose(self, first: Permutation) -> Permutation:
        """The permutation that applies `first` and then this one.

        Args:
            first: The permutation that is applied first.

        Returns:
            A permutation p with ``p.apply(x) == self.apply(first.apply(x))``.
        """
        composed = {}
        for name, index in self.indices.items():
            rows, within = first.indices[name], self.spec.groups[name].within
            composed[name] = (
                rows[index] if within is None else np.take_along_axis(rows[self.indices[within]], index, axis=1)
            )
        return Permutation(self.spec, composed)

    def inverse(self) -> Permutation:
        """The permutation that undoes this one."""
        inverted = {}
        for name, index in self.indices.items():
            rows, within = np.argsort(index, axis=-1), self.spec.groups[name].within
            inverted[name] = rows if within is None else rows[np.argsort(self.indices[within])]
        return Permutation(self.spec, inverted)

    def count_moved(self, other: Permutation) -> int:
        """The number of positions that the two permutations send elsewhere."""
        return sum(int((index != other.indices[name]).sum()) for name, index in self.indices.items())


def _index(permutation: Permutation, term: Term, blocks: Mapping[str, int]) -> Index:
    """`blocks` maps each enclosing outer group to a position: a wreath group reads that row."""
    match term:
        case Leaf(group):
            index, within = permutation.indices[group], permutation.spec.groups[group].within
            return index if within is None else index[blocks[within]]
        case Pinned(size):
            return np.arange(size)
        case Concat(parts):
            vectors, offset = [], 0
            for part in parts:
                vectors.append(_index(permutation, part, blocks) + offset)
                offset += len(vectors[-1])
            return np.concatenate(vectors)
        case Product(factors):
            return _product_index(permutation, factors, blocks)
    raise AssertionError(term)


def _product_index(permutation: Permutation, factors: Sequence[Term], blocks: Mapping[str, int]) -> Index:
    if len(factors) == 1:
        return _index(permutation, factors[0], blocks)
    # Where a group has others within it, the other factors have an index of their own in each of its blocks.
    groups = [factor.group if isinstance(factor, Leaf) else "" for factor in factors]
    outer = next((group for group in groups if permutation.spec.inner_groups.get(group)), None)
    number = 0 if outer is None else groups.index(outer)
    head, others = _index(permutation, factors[number], blocks), [*factors[:number], *factors[number + 1 :]]
    rows = np.stack([
        _product_index(permutation, others, blocks if outer is None else {**blocks, outer: block})
        for block in range(1 if outer is None else len(head))
    ])
    inner = math.prod(factor.size for factor in factors[number + 1 :])
    joint: Index = ((rows // inner) * len(head) + head[:, None]) * inner + rows % inner
    return joint.reshape(len(head), -1, inner).swapaxes(0, 1).reshape(-1)


def gather(tensor: Tensor, axis: int, index: Index) -> Tensor:
    """Read a tensor at the given indices of an axis: ``new[i] = old[index[i]]``.

    Args:
        tensor: The tensor.
        axis: The axis.
        index: Indices into the axis.

    Returns:
        A new tensor, or the tensor itself where that changes nothing.
    """
    if np.array_equal(index, np.arange(tensor.shape[axis])):
        return tensor
    return tensor.index_select(axis, torch.from_numpy(index).to(tensor.device))
