"""The axes of a traced tensor: one term per axis, with views that split an axis kept lazy.

A packed projection of length 3·C that is viewed as (3, H, d) may turn out to be three axes one after the other (when q,
k and v are selected) or one product (when all of it is used at once). Which one is not known when the view is made, and
choosing the product too early would tie v to q and k. A `Split` therefore keeps the whole term until an operator reads
a single factor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from starzoo.symmetry.terms import Pinned, Term, factorize, free, partition, pin, product, resolve

__all__ = ["Axes", "Factor", "Split"]


@dataclass(frozen=True, eq=False, slots=True)
class Split:
    """One axis seen as a row-major block of several axes, none of length 1."""

    term: Term
    sizes: tuple[int, ...]

    def axes(self) -> list[Factor]:
        """The axes that the block consists of."""
        return [Factor(self, index) for index in range(len(self.sizes))]

    def factors(self) -> list[Term]:
        """Decide that the split is a product, for every tensor that shares the term."""
        return factorize(self.term, self.sizes)


@dataclass(frozen=True, slots=True)
class Factor:
    """One axis of a tensor: a factor of a split."""

    split: Split
    index: int

    @property
    def size(self) -> int:
        """The length of the axis."""
        return self.split.sizes[self.index]

    @property
    def term(self) -> Term:
        """The term of the axis; reading it decides the split."""
        return self.split.factors()[self.index]


@dataclass(frozen=True)
class Axes:
    """The axes of one tensor.

    Attributes:
        factors: One factor per axis. All factors of a split are present, because dropping an axis reads its term.
    """

    factors: tuple[Factor, ...]

    @classmethod
    def of(cls, terms: Iterable[Term]) -> Axes:
        """Axes without a split."""
        return cls(tuple(Factor(Split(term, (term.size,)), 0) for term in terms))

    @classmethod
    def fresh(cls, shape: Sequence[int]) -> Axes:
        """Axes that are free variables."""
        return cls.of(map(free, shape))

    @classmethod
    def pinned(cls, shape: Sequence[int], reason: str) -> Axes:
        """Axes that are all pinned."""
        return cls.of(Pinned(size, reason) for size in shape)

    def __len__(self) -> int:
        return len(self.factors)

    def __getitem__(self, axis: int) -> Term:
        return self.factors[axis].term

    def __iter__(self) -> Iterator[Term]:
        return (factor.term for factor in self.factors)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""
        return tuple(factor.size for factor in self.factors)

    def joint_terms(self) -> list[Term]:
        """Terms that together describe all positions of the tensor, without deciding any split."""
        splits = {id(factor.split): factor.split for factor in self.factors}
        return [resolve(split.term) for split in splits.values()]

    def pin(self, reason: str) -> None:
        """Pin every axis."""
        for term in self.joint_terms():
            pin(term, reason)

    def permute(self, order: Sequence[int]) -> Axes:
        """The axes in another order."""
        return Axes(tuple(self.factors[axis] for axis in order))

    def reshape(self, shape: Sequence[int]) -> Axes:
        """The same positions in row-major order with other axes.

        Runs of axes of equal size on both sides are matched greedily: each run is merged to one term, then split again.

        Args:
            shape: The new lengths.

        Returns:
            The new axes.
        """
        if 0 in shape:
            return Axes.pinned(shape, "empty")
        blocks = list(_align([f for f in self.factors if f.size != 1], [size for size in shape if size != 1]))
        untouched = {run[0] for run, sizes in blocks if len(run) == len(sizes) == 1}
        factors: list[Factor] = []
        for run, sizes in blocks:
            keep = untouched.issuperset(run[0].split.axes())  # an undecided split is kept as a whole or not at all
            factors.extend(run if keep else _split(_merge(run), sizes))
        remaining = iter(factors)
        return Axes(tuple(_UNIT if size == 1 else next(remaining) for size in shape))

    def narrow(self, axis: int, start: int, stop: int) -> Axes:
        """The positions from `start` to `stop` of one axis.

        A cut through a lazy split decides only the factors outside of it: (3, H, d) cut along 3 becomes parts one
        after the other, each of which is (H, d).

        Args:
            axis: Which axis.
            start: First position.
            stop: One after the last position.

        Returns:
            The axes of the part.
        """
        split, index = self.factors[axis].split, self.factors[axis].index
        if stop - start == split.sizes[index]:
            return self
        *outer, rest = factorize(split.term, (*split.sizes[:index], math.prod(split.sizes[index:])))
        block = math.prod(split.sizes[index + 1 :])
        cuts = (start * block, (stop - start) * block, rest.size - stop * block)
        part = _split(partition(rest, cuts)[1], (stop - start, *split.sizes[index + 1 :]))
        replaced = [*Axes.of(outer).factors, *part]
        return Axes(tuple(replaced[f.index] if f.split is split else f for f in self.factors))

    def drop(self, axis: int) -> Axes:
        """The axes without one of length 1."""
        return Axes(self.factors[:axis] + self.factors[axis + 1 :])

    def replace(self, axis: int, term: Term) -> Axes:
        """The axes with another term for one of them."""
        terms = list(self)
        terms[axis] = term
        return Axes.of(terms)


_UNIT = Axes.of([Pinned(1)]).factors[0]


def _split(term: Term, sizes: Sequence[int]) -> list[Factor]:
    split = Split(term, tuple(size for size in sizes if size != 1))
    factors = iter(split.axes())
    return [_UNIT if size == 1 else next(factors) for size in sizes]


def _align(factors: Iterable[Factor], sizes: Iterable[int]) -> Iterator[tuple[list[Factor], list[int]]]:
    """The shortest runs on both sides that cover the same positions."""
    source, target = iter(factors), iter(sizes)
    for first in source:
        run, lengths = [first], [next(target)]
        while (source_size := math.prod(factor.size for factor in run)) != (target_size := math.prod(lengths)):
            if source_size < target_size:
                run.append(next(source))
            else:
                lengths.append(next(target))
        yield run, lengths


def _merge(run: list[Factor]) -> Term:
    """The row-major product of axes; where all axes of one split are in order, its term stays undecided."""
    terms: list[Term] = []
    position = 0
    while position < len(run):
        split = run[position].split
        whole = split.axes()
        if run[position : position + len(whole)] == whole:
            terms.append(split.term)
            position += len(whole)
        else:
            terms.append(run[position].term)
            position += 1
    return product(terms)
