"""The algebra of axis terms: how one axis of one tensor may be permuted.

A term stands for a set of permutations of an axis:

* `Free`: any permutation. It is a variable of the trace, bound to another term of its size when more becomes known.
* `Leaf`: the permutations of one group. It is a variable that nothing bound, after the trace.
* `Pinned`: the identity only.
* `Constant`: the tensor is constant along the axis, so every permutation leaves it as it is.
* `Product`: a row-major product of shorter axes, outermost first, each with a permutation of its own, for example
  (heads, head dimension).
* `Concat`: shorter axes one after the other, each with a permutation of its own, for example the packed q, k and v of
  attention.

Only `Free` ever changes, by being bound, and every tensor that shares it sees the change at once. `unify` makes two
axes move together: it intersects the two sets, or pins where their structures do not fit. Pinning is always sound. The
terms of a trace contain no `Leaf`, those of a specification no `Free` and no `Constant`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

__all__ = [
    "Concat",
    "Constant",
    "Free",
    "Leaf",
    "Pinned",
    "Product",
    "Term",
    "atoms",
    "concat",
    "factorize",
    "free",
    "groups_of",
    "has_constant",
    "partition",
    "pin",
    "pinned_parts",
    "product",
    "resolve",
    "unify",
]


@dataclass(eq=False, slots=True)
class Free:
    """A variable: an axis that is unconstrained so far (`value` is None), or bound to `value`."""

    size: int
    value: Term | None = None


@dataclass(frozen=True, slots=True)
class Leaf:
    """An axis, or a factor or part of one, that is permuted by one group."""

    group: str
    size: int


@dataclass(frozen=True, slots=True)
class Pinned:
    """An axis, or a factor or part of one, that must stay as it is."""

    size: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Constant:
    """An axis along which the tensor is constant."""

    size: int


@dataclass(frozen=True, slots=True)
class Product:
    """A row-major product of axes, outermost factor first."""

    factors: tuple[Term, ...]

    @property
    def size(self) -> int:
        """The length of the axis."""
        return math.prod(factor.size for factor in self.factors)


@dataclass(frozen=True, slots=True)
class Concat:
    """Axes one after the other."""

    parts: tuple[Term, ...]

    @property
    def size(self) -> int:
        """The length of the axis."""
        return sum(part.size for part in self.parts)


Atom = Free | Leaf | Pinned | Constant
Term = Atom | Product | Concat


def free(size: int) -> Term:
    """A fresh variable; an axis of one position cannot move and is pinned."""
    return Free(size) if size > 1 else Pinned(size)


def product(factors: Iterable[Term]) -> Term:
    """The row-major product of axes, flat and without trivial factors."""
    flat: list[Term] = []
    for factor in map(resolve, factors):
        flat.extend(factor.factors if isinstance(factor, Product) else [factor])
    flat = [factor for factor in flat if factor.size != 1]
    if len(flat) > 1:
        return Product(tuple(flat))
    return flat[0] if flat else Pinned(1)


def concat(parts: Iterable[Term]) -> Term:
    """Axes one after the other, flat and without empty parts."""
    flat: list[Term] = []
    for part in map(resolve, parts):
        flat.extend(part.parts if isinstance(part, Concat) else [part])
    flat = [part for part in flat if part.size]
    if len(flat) > 1:
        return Concat(tuple(flat))
    return flat[0] if flat else Pinned(0)


def resolve(term: Term) -> Term:
    """Follow the bindings of variables; products and concatenations come back flat."""
    while isinstance(term, Free) and term.value is not None:
        if isinstance(term.value, Free) and term.value.value is not None:
            term.value = term.value.value  # halve the path, as in union-find
        term = term.value
    match term:
        case Product(factors) if any(isinstance(factor, Free) and factor.value is not None for factor in factors):
            return product(factors)
        case Concat(parts) if any(isinstance(part, Free) and part.value is not None for part in parts):
            return concat(parts)
    return term


def pin(term: Term, reason: str) -> Term:
    """Pin an axis: only the identity is left.

    Args:
        term: The axis; every variable in it is bound to a pinned term. A constant axis stays constant.
        reason: Why, as `inspect --why` reports it; of several reasons the first is kept.

    Returns:
        The pinned axis.
    """
    term = resolve(term)
    match term:
        case Free():
            term.value = Pinned(term.size, reason)
            return term.value
        case Product(children) | Concat(children):
            for child in children:
                pin(child, reason)
            return Pinned(term.size, reason)
        case Constant(size):
            return Pinned(size, reason)
    return term


def partition(term: Term, sizes: Sequence[int]) -> list[Term]:
    """Partition an axis into parts one after the other.

    Args:
        term: The axis, refined in place where needed.
        sizes: The lengths of the parts, which add up to the axis.

    Returns:
        One term per part.
    """
    term = resolve(term)
    if len(sizes) == 1:
        return [term]
    match term:
        case Free():
            parts = [free(size) for size in sizes]
            term.value = concat(parts)
            return parts
        case Concat(parts):
            return _partition_sum(parts, sizes)
        case Product(factors):
            outer, inner = factors[0], product(factors[1:])
            if all(size % inner.size == 0 for size in sizes):
                return [product([part, inner]) for part in partition(outer, [size // inner.size for size in sizes])]
            # A cut inside a block: the blocks are pinned, which makes them parts one after the other.
            pin(outer, "cut inside a block")
            return partition(concat([inner] * outer.size), sizes)
        case _:  # pinned or constant, and so is every part
            return [replace(term, size=size) for size in sizes]


def _partition_sum(parts: Sequence[Term], sizes: Sequence[int]) -> list[Term]:
    cuts = sorted({*_cuts(sizes), *_cuts([part.size for part in parts])})
    pieces: list[Term] = []
    for start, part in zip(_cuts([part.size for part in parts]), parts, strict=False):
        inside = [cut for cut in cuts if start <= cut <= start + part.size]
        pieces.extend(partition(part, [stop - start for start, stop in pairwise(inside)]))
    index = {cut: number for number, cut in enumerate(cuts)}
    return [concat(pieces[index[start] : index[stop]]) for start, stop in pairwise(_cuts(sizes))]


def factorize(term: Term, sizes: Sequence[int]) -> list[Term]:
    """Factorize an axis as a row-major product.

    Args:
        term: The axis, refined in place where needed.
        sizes: The lengths of the factors, outermost first, whose product is the axis.

    Returns:
        One term per factor.
    """
    term = resolve(term)
    if 0 in sizes:  # an empty axis contradicts no permutation
        return [Constant(size) if size > 1 else Pinned(size, "empty") for size in sizes]
    if 1 in sizes:
        proper = iter(factorize(term, [size for size in sizes if size != 1]))
        return [Pinned(1) if size == 1 else next(proper) for size in sizes]
    if len(sizes) <= 1:
        return [term]
    match term:
        case Free():
            factors = [free(size) for size in sizes]
            term.value = product(factors)
            return factors
        case Product(factors):
            return _factorize_prod(factors, sizes)
        case Concat(parts):
            outer, inner = _factorize_sum(parts, math.prod(sizes[1:]))
            return [outer, *factorize(inner, sizes[1:])]
        case _:  # pinned or constant, and so is every factor
            return [replace(term, size=size) for size in sizes]


def _factorize_prod(factors: Sequence[Term], sizes: Sequence[int]) -> list[Term]:
    """Cut both sequences at the common refinement of their strides; where there is none, pin everything."""
    refined = _common_refinement([factor.size for factor in factors], sizes)
    if refined is None:
        pinned = pin(product(factors), "split across the boundary of a block")
        return factorize(pinned, sizes)
    strides = list(refined)
    pieces = iter([piece for factor in factors for piece in factorize(factor, _take(strides, factor.size))])
    return [product(next(pieces) for _ in _take(refined, size)) for size in sizes]


def _factorize_sum(parts: Sequence[Term], inner_size: int) -> tuple[Term, Term]:
    """Divide parts into whole blocks of `inner_size` positions, which all move alike inside."""
    if any(part.size % inner_size for part in parts):
        pinned = pin(concat(parts), "blocks do not fit the parts")
        outer, inner = factorize(pinned, (pinned.size // inner_size, inner_size))
        return outer, inner
    pairs = [factorize(part, (part.size // inner_size, inner_size)) for part in parts]
    inner = pairs[0][1]
    for _, factor in pairs[1:]:
        inner = unify(inner, factor)
    return concat(outer for outer, _ in pairs), inner


def unify(first: Term, second: Term) -> Term:
    """Make two axes move together.

    Args:
        first: An axis.
        second: An axis of the same length.

    Returns:
        The term of both. A constant axis binds nothing: the other one is returned as it was.
    """
    first, second = resolve(first), resolve(second)
    match first, second:
        case _ if first is second:
            return first
        case (Constant(), other) | (other, Constant()):
            return other
        case (Pinned(_, reason), other) | (other, Pinned(_, reason)):
            pin(other, reason)
            return Pinned(other.size, reason)
        case (Free() as variable, other) | (other, Free() as variable):
            variable.value = _without_constants(other)
            return variable.value
        case (Concat(), _) | (_, Concat()):
            sizes = [stop - start for start, stop in pairwise(sorted({*_term_cuts(first), *_term_cuts(second)}))]
            return concat(map(unify, partition(first, sizes), partition(second, sizes)))
        case _:
            refined = _common_refinement(_factor_sizes(first), _factor_sizes(second))
            if refined is None:
                pin(first, "block sizes do not fit")
                return pin(second, "block sizes do not fit")
            return product(map(unify, factorize(first, refined), factorize(second, refined)))


def _without_constants(term: Term) -> Term:
    """The value of a variable that is bound to `term`: constant parts of it leave the variable free there."""
    term = resolve(term)
    match term:
        case Constant(size):
            return free(size)
        case Product(factors) if any(has_constant(factor) for factor in factors):
            return product(map(_without_constants, factors))
        case Concat(parts) if any(has_constant(part) for part in parts):
            return concat(map(_without_constants, parts))
    return term


def atoms(term: Term) -> Iterator[Atom]:
    """The terms without factors and parts that a term consists of, in order."""
    term = resolve(term)
    match term:
        case Product(children) | Concat(children):
            for child in children:
                yield from atoms(child)
        case _:
            yield term


def has_constant(term: Term) -> bool:
    """Whether the tensor is constant along any part of an axis."""
    return any(isinstance(atom, Constant) for atom in atoms(term))


def groups_of(term: Term) -> Iterator[str]:
    """The groups that occur in a term, in order, repeated where they occur more than once."""
    return (atom.group for atom in atoms(term) if isinstance(atom, Leaf))


def pinned_parts(term: Term) -> Iterator[Pinned]:
    """The parts and factors of a term that must stay as they are, in order."""
    return (atom for atom in atoms(term) if isinstance(atom, Pinned))


def _cuts(sizes: Sequence[int]) -> list[int]:
    return [0, *accumulate(sizes)]


def _factor_sizes(term: Term) -> list[int]:
    return [factor.size for factor in term.factors] if isinstance(term, Product) else [term.size]


def _term_cuts(term: Term) -> list[int]:
    return _cuts([part.size for part in term.parts]) if isinstance(term, Concat) else [0, term.size]


def _common_refinement(first: Sequence[int], second: Sequence[int]) -> list[int] | None:
    """The factor sizes that refine both factorizations of one length, or None where their strides do not divide."""
    strides = sorted({*_strides(first), *_strides(second)}, reverse=True)
    if any(outer % inner for outer, inner in pairwise(strides)):
        return None
    return [outer // inner for outer, inner in pairwise(strides)]


def _strides(sizes: Sequence[int]) -> list[int]:
    return list(accumulate(reversed(sizes), initial=1, func=lambda stride, size: stride * size))


def _take(sizes: list[int], size: int) -> list[int]:
    """Remove from the front the factors whose product is `size`."""
    front = []
    while size > 1:
        front.append(sizes.pop(0))
        size //= front[-1]
    return front
