"""A permutation of a whole network: one index vector per group.

Indices gather: ``new[i] = old[index[i]]``. A wreath group within an outer group of h blocks carries an (h, n) array
whose row i is the permutation inside the block that stands at place i *after* the outer permutation.
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

__all__ = ["Permutation"]

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
        return cls(spec, {name: np.tile(np.arange(shape[-1]), (*shape[:-1], 1)) for name, shape in _shapes(spec)})

    @classmethod
    def random(cls, spec: PermutationSpec, rng: np.random.Generator) -> Permutation:
        """A uniformly random element.

        Args:
            spec: The symmetries of the network.
            rng: The source of randomness.

        Returns:
            The permutation.
        """
        return cls(
            spec,
            {
                name: rng.permuted(np.tile(np.arange(shape[-1]), (*shape[:-1], 1)), axis=-1)
                for name, shape in _shapes(spec)
            },
        )

    @classmethod
    def from_tensors(cls, spec: PermutationSpec, tensors: StateDict, *, subject: str = "") -> Permutation:
        """Read the index vectors that `tensors` wrote, and check that they are permutations of the right shape.

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
        for name, shape in _shapes(spec):
            expected = np.broadcast_to(np.arange(shape[-1]), shape)
            index = indices.get(name)
            if index is None or index.shape != shape or not np.array_equal(np.sort(index, axis=-1), expected):
                raise UntrustedInputError(
                    subject or "permutations",
                    f"group {name!r} holds no permutation of shape {shape}",
                    hint="fetch the file again",
                )
        known = dict(_shapes(spec))
        if unknown := tensors.keys() - known.keys():
            raise UntrustedInputError(
                subject or "permutations",
                f"unknown group {min(unknown)!r}",
                hint="the file belongs to another architecture",
            )
        return cls(spec, {name: indices[name] for name in known})

    def tensors(self) -> dict[str, Tensor]:
        """One int32 tensor per group: what is stored in `permutations.safetensors`."""
        return {name: torch.from_numpy(index.astype(np.int32)) for name, index in self.indices.items()}

    def index(self, term: Term) -> Index:
        """The index vector of an axis that `term` describes.

        Args:
            term: A term of the specification's axes.

        Returns:
            The vector that gathers the axis, shape (length of the axis,).
        """
        return self._index(term, {})

    def _index(self, term: Term, blocks: Mapping[str, int]) -> Index:
        """`blocks` says at which place of each enclosing outer group we stand: a wreath group reads that row."""
        match term:
            case Leaf(group):
                within = self.spec.groups[group].within
                return self.indices[group] if within is None else self.indices[group][blocks[within]]
            case Pinned(size):
                return np.arange(size)
            case Concat(parts):
                vectors, offset = [], 0
                for part in parts:
                    vectors.append(self._index(part, blocks) + offset)
                    offset += len(vectors[-1])
                return np.concatenate(vectors)
            case Product((only,)):
                return self._index(only, blocks)
            case Product(factors):
                leads = (
                    place for place, factor in enumerate(factors) if isinstance(factor, Leaf) and self._leads(factor)
                )
                place = next(leads, 0)
                head, rest = self._index(factors[place], blocks), Product(factors[:place] + factors[place + 1 :])
                if isinstance(lead := factors[place], Leaf) and self._leads(lead):
                    rows = np.stack([self._index(rest, {**blocks, lead.group: block}) for block in range(len(head))])
                else:
                    rows = self._index(rest, blocks)[None]
                inner = math.prod(factor.size for factor in factors[place + 1 :])
                joint: Index = ((rows // inner) * len(head) + head[:, None]) * inner + rows % inner
                return joint.reshape(len(head), -1, inner).swapaxes(0, 1).reshape(-1)
        raise AssertionError(term)

    def _leads(self, leaf: Leaf) -> bool:
        """Whether other groups have a permutation of their own in every block of this one."""
        return bool(self.spec.inner_groups[leaf.group])

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
        """Move what the network returned as it moves when its weights are permuted.

        Args:
            outputs: The tensors that it returned, in the order of `spec.outputs`.

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
                            "",
                            f"output of shape {tuple(tensor.shape)}: axis {axis} had {term.size} "
                            "positions in the trace, which has a batch of one",
                            hint="check a batch of one",
                        )
                    tensor = tensor.index_select(axis, torch.from_numpy(self.index(term)).to(tensor.device))
            moved.append(tensor)
        return moved

    def _apply_to(self, name: str, tensor: Tensor) -> Tensor:
        for axis, term in enumerate(self.spec.axes.get(name, ())):
            if axis >= tensor.ndim or tensor.shape[axis] != term.size:
                raise IncompatibleError(
                    name,
                    f"shape {tuple(tensor.shape)} does not match the permutation specification",
                    hint="use models of one architecture with the same arguments",
                )
            index = self.index(term)
            if not np.array_equal(index, np.arange(len(index))):
                tensor = tensor.index_select(axis, torch.from_numpy(index).to(tensor.device))
        return tensor

    def compose(self, first: Permutation) -> Permutation:
        """The permutation that applies `first` and then this one.

        Args:
            first: What is applied first.

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

    def moved(self, other: Permutation) -> int:
        """How many positions the two permutations send elsewhere."""
        return sum(int((index != other.indices[name]).sum()) for name, index in self.indices.items())


def _shapes(spec: PermutationSpec) -> Iterable[tuple[str, tuple[int, ...]]]:
    for name, group in spec.groups.items():
        yield name, (group.size,) if group.within is None else (spec.groups[group.within].size, group.size)
