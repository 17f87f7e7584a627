"""The permutation symmetries of a network: its groups, and a term of them for each axis of each tensor.

A group acts as the symmetric group S_n on its n positions. A group `within` another one acts as a wreath product
S_n ≀ S_h: each of the h blocks of the outer group has a permutation of its own. Its leaves stand only inside a
`Product` in which a leaf of the outer group is another factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from starzoo.errors import UsageError
from starzoo.symmetry.terms import Concat, Leaf, Pinned, Product, Term, groups_of

__all__ = ["PermutationGroup", "PermutationSpec"]


@dataclass(frozen=True)
class PermutationGroup:
    """One symmetric group of a network.

    Attributes:
        name: The group's name, unique in its specification; taken from a parameter that it permutes.
        size: The number n of positions that one permutation moves.
        within: For a wreath product, the name of the outer group, each block of which has its own permutation of
            the n positions; None otherwise.
    """

    name: str
    size: int
    within: str | None = None


@dataclass(frozen=True)
class PermutationSpec:
    """All permutation symmetries of one network.

    Attributes:
        groups: The groups by name. An outer group comes before the groups within it.
        axes: For every tensor of the state dict, one term per axis.
        outputs: For every tensor that the network returns, one term per axis; all pinned unless the output was left
            free to be permuted, as an embedding's may be.
        unsupported_operators: Operators without a rule: every axis that they touch is pinned.
        trace_seconds: Wall-clock seconds of the inference.
    """

    groups: Mapping[str, PermutationGroup]
    axes: Mapping[str, tuple[Term, ...]]
    outputs: tuple[tuple[Term, ...], ...] = ()
    unsupported_operators: tuple[str, ...] = ()
    trace_seconds: float = 0.0

    @cached_property
    def occurrences(self) -> Mapping[str, tuple[tuple[str, int], ...]]:
        """For every group, the (tensor name, axis) pairs in which it occurs, in the order of the state dict."""
        occurrences: dict[str, dict[tuple[str, int], None]] = {name: {} for name in self.groups}
        for tensor, terms in self.axes.items():
            for axis, term in enumerate(terms):
                for group in groups_of(term):
                    occurrences[group][tensor, axis] = None
        return {name: tuple(axes) for name, axes in occurrences.items()}

    @cached_property
    def permuted_tensors(self) -> tuple[str, ...]:
        """The tensors that some group moves, in the order of the state dict."""
        return tuple(filter(self.is_permuted, self.axes))

    @cached_property
    def inner_groups(self) -> Mapping[str, tuple[str, ...]]:
        """For every group, the wreath groups within it."""
        return {
            name: tuple(group.name for group in self.groups.values() if group.within == name) for name in self.groups
        }

    @property
    def wreath_groups(self) -> int:
        """The number of groups that act blockwise within another one."""
        return sum(group.within is not None for group in self.groups.values())

    def is_permuted(self, tensor: str) -> bool:
        """Whether any axis of `tensor` is moved by a group."""
        return any(True for term in self.axes.get(tensor, ()) for _ in groups_of(term))

    def coverage(self, sizes: Mapping[str, int]) -> float:
        """The share of parameters in tensors that at least one group permutes.

        Args:
            sizes: Number of elements of every parameter, by name.

        Returns:
            A share from 0 to 1; 0 for a network without parameters.
        """
        total = sum(sizes.values())
        return sum(size for name, size in sizes.items() if self.is_permuted(name)) / total if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """The specification as a JSON value; `from_json` reads it back."""
        return {
            "groups": [[g.name, g.size, g.within] for g in self.groups.values()],
            "axes": {name: [_term_to_json(term) for term in terms] for name, terms in self.axes.items()},
            "outputs": [[_term_to_json(term) for term in terms] for terms in self.outputs],
            "unsupported_operators": list(self.unsupported_operators),
            "trace_seconds": self.trace_seconds,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PermutationSpec:
        """Read a specification that `to_json` wrote.

        Args:
            value: The result of `to_json`.

        Returns:
            An equal specification.
        """
        groups = {name: PermutationGroup(name, size, within) for name, size, within in value["groups"]}

        def terms(values: Sequence[Any]) -> tuple[Term, ...]:
            return tuple(_term_from_json(value, groups) for value in values)

        return cls(
            groups=groups,
            axes={name: terms(values) for name, values in value["axes"].items()},
            outputs=tuple(map(terms, value["outputs"])),
            unsupported_operators=tuple(value["unsupported_operators"]),
            trace_seconds=float(value["trace_seconds"]),
        )


def _term_to_json(term: Term) -> Any:
    match term:
        case Leaf(group):
            return group
        case Pinned(size, reason):
            return [size, reason]
        case Product(factors):
            return {"product": [_term_to_json(factor) for factor in factors]}
        case Concat(parts):
            return {"concat": [_term_to_json(part) for part in parts]}
    raise AssertionError(term)


def _term_from_json(value: Any, groups: Mapping[str, PermutationGroup]) -> Term:
    match value:
        case str(group):
            return Leaf(group, groups[group].size)
        case [int(size), str(reason)]:
            return Pinned(size, reason)
        case {"product": factors}:
            return Product(tuple(_term_from_json(factor, groups) for factor in factors))
        case {"concat": parts}:
            return Concat(tuple(_term_from_json(part, groups) for part in parts))
    raise UsageError("permutation specification", f"expected a term, got {value!r}", hint="delete the damaged file")
