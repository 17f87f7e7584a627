"""The algebra of axis terms: what is known, while tracing, of how one axis of one tensor may be permuted.

A term stands for a set of permutations of an axis:

* `Free`: any permutation; a variable that may be bound to another term of the same size when more becomes known;
* `Pin`: the identity only;
* `Wild`: the tensor is constant along the axis, so that it agrees with every permutation that others ask for;
* `Prod`: a row-major product of shorter axes, outermost first, each with a permutation of its own;
* `Sum`: shorter axes one after the other, each with a permutation of its own.

Only `Free` ever changes, by being bound: every tensor that shares it sees the change at once. `unify` makes two axes
move together; it intersects the two sets, or pins where their structures do not fit. Pinning is always sound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

__all__ = [
    "Free",
    "Pin",
    "Prod",
    "Sum",
    "Term",
    "Wild",
    "concat",
    "factorize",
    "free",
    "has_wild",
    "partition",
    "pin",
    "product",
    "resolve",
    "unify",
]


@dataclass(eq=False, slots=True)
class Free:
    """An axis of which nothing is known yet (`value` is None), or which was bound to `value`."""

    size: int
    value: Term | None = None


@dataclass(frozen=True, slots=True)
class Pin:
    """An axis that must stay as it is."""

    size: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Wild:
    """An axis along which the tensor is constant."""

    size: int


@dataclass(frozen=True, eq=False, slots=True)
class Prod:
    """A row-major product of axes, outermost first."""

    factors: tuple[Term, ...]

    @property
    def size(self) -> int:
        """The length of the axis."""
        return math.prod(factor.size for factor in self.factors)


@dataclass(frozen=True, eq=False, slots=True)
class Sum:
    """Axes one after the other."""

    parts: tuple[Term, ...]

    @property
    def size(self) -> int:
        """The length of the axis."""
        return sum(part.size for part in self.parts)


Term = Free | Pin | Wild | Prod | Sum


def free(size: int) -> Term:
    """A fresh variable; an axis of one position cannot move and is pinned."""
    return Free(size) if size > 1 else Pin(size)


def product(factors: Iterable[Term]) -> Term:
    """The row-major product of axes, flat and without trivial factors."""
    flat: list[Term] = []
    for factor in map(resolve, factors):
        flat.extend(factor.factors if isinstance(factor, Prod) else [factor])
    flat = [factor for factor in flat if factor.size != 1]
    if len(flat) > 1:
        return Prod(tuple(flat))
    return flat[0] if flat else Pin(1)


def concat(parts: Iterable[Term]) -> Term:
    """Axes one after the other, flat and without empty parts."""
    flat: list[Term] = []
    for part in map(resolve, parts):
        flat.extend(part.parts if isinstance(part, Sum) else [part])
    flat = [part for part in flat if part.size]
    if len(flat) > 1:
        return Sum(tuple(flat))
    return flat[0] if flat else Pin(0)


def resolve(term: Term) -> Term:
    """Follow bindings to what is known now; products and sums come back flat."""
    while isinstance(term, Free) and term.value is not None:
        if isinstance(term.value, Free) and term.value.value is not None:
            term.value = term.value.value  # halve the path, as in union-find
        term = term.value
    match term:
        case Prod(factors) if any(isinstance(factor, Free) and factor.value is not None for factor in factors):
            return product(factors)
        case Sum(parts) if any(isinstance(part, Free) and part.value is not None for part in parts):
            return concat(parts)
    return term


def pin(term: Term, reason: str) -> Term:
    """Allow no permutation of an axis any more.

    Args:
        term: The axis; every variable in it is bound to a pin. A constant axis stays constant.
        reason: Why, for whoever asks; the first reason is kept.

    Returns:
        The pinned axis.
    """
    term = resolve(term)
    match term:
        case Free():
            term.value = Pin(term.size, reason)
            return term.value
        case Prod(children) | Sum(children):
            for child in children:
                pin(child, reason)
            return Pin(term.size, reason)
        case Wild(size):
            return Pin(size, reason)
    return term


def partition(term: Term, sizes: Sequence[int]) -> list[Term]:
    """See an axis as parts one after the other.

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
        case Pin(_, reason):
            return [Pin(size, reason) for size in sizes]
        case Wild():
            return [Wild(size) for size in sizes]
        case Free():
            parts = [free(size) for size in sizes]
            term.value = concat(parts)
            return parts
        case Sum(parts):
            return _partition_sum(parts, sizes)
        case Prod(factors):
            outer, inner = factors[0], product(factors[1:])
            if all(size % inner.size == 0 for size in sizes):
                return [product([part, inner]) for part in partition(outer, [size // inner.size for size in sizes])]
            # A cut inside a block: the blocks must stay where they are, and then stand one after the other.
            pin(outer, "cut inside a block")
            return partition(concat([inner] * outer.size), sizes)


def _partition_sum(parts: Sequence[Term], sizes: Sequence[int]) -> list[Term]:
    cuts = sorted({*_cuts(sizes), *_cuts([part.size for part in parts])})
    pieces: list[Term] = []
    for start, part in zip(_cuts([part.size for part in parts]), parts, strict=False):
        inside = [cut for cut in cuts if start <= cut <= start + part.size]
        pieces.extend(partition(part, [stop - start for start, stop in pairwise(inside)]))
    place = {cut: index for index, cut in enumerate(cuts)}
    return [concat(pieces[place[start] : place[stop]]) for start, stop in pairwise(_cuts(sizes))]


def factorize(term: Term, sizes: Sequence[int]) -> list[Term]:
    """See an axis as a row-major product.

    Args:
        term: The axis, refined in place where needed.
        sizes: The lengths of the factors, outermost first, whose product is the axis.

    Returns:
        One term per factor.
    """
    term = resolve(term)
    if 0 in sizes:  # nothing is there that could contradict any permutation
        return [Wild(size) if size > 1 else Pin(size, "empty") for size in sizes]
    if 1 in sizes:
        proper = iter(factorize(term, [size for size in sizes if size != 1]))
        return [Pin(1) if size == 1 else next(proper) for size in sizes]
    if len(sizes) <= 1:
        return [term]
    match term:
        case Pin(_, reason):
            return [Pin(size, reason) for size in sizes]
        case Wild():
            return [Wild(size) for size in sizes]
        case Free():
            factors = [free(size) for size in sizes]
            term.value = product(factors)
            return factors
        case Prod(factors):
            return _factorize_prod(factors, sizes)
        case Sum(parts):
            outer, inner = _factorize_sum(parts, math.prod(sizes[1:]))
            return [outer, *factorize(inner, sizes[1:])]


def _factorize_prod(factors: Sequence[Term], sizes: Sequence[int]) -> list[Term]:
    """Both sequences are cut at the common refinement of their strides; where there is none, everything is pinned."""
    refined = _common_refinement([factor.size for factor in factors], sizes)
    if refined is None:
        pinned = pin(product(factors), "split across the boundary of a block")
        return factorize(pinned, sizes)
    strides = list(refined)
    pieces = iter([piece for factor in factors for piece in factorize(factor, _take(strides, factor.size))])
    return [product(next(pieces) for _ in _take(refined, size)) for size in sizes]


def _factorize_sum(parts: Sequence[Term], inner_size: int) -> tuple[Term, Term]:
    """Blocks of `inner_size` positions that all move alike inside: each part is a run of whole blocks."""
    if any(part.size % inner_size for part in parts):
        pinned = pin(concat(parts), "blocks do not fit the parts")
        outer, inner = factorize(pinned, (pinned.size // inner_size, inner_size))
        return outer, inner
    pairs = [factorize(part, (part.size // inner_size, inner_size)) for part in parts]
    inner = pairs[0][1]
    for _, other in pairs[1:]:
        inner = unify(inner, other)
    return concat(outer for outer, _ in pairs), inner


def unify(first: Term, second: Term) -> Term:
    """Make two axes move together.

    Args:
        first: An axis.
        second: An axis of the same length.

    Returns:
        What both are now. A constant axis takes part in no bond: the other one is returned as it was.
    """
    first, second = resolve(first), resolve(second)
    match first, second:
        case _ if first is second:
            return first
        case (Wild(), other) | (other, Wild()):
            return other
        case (Pin(_, reason), other) | (other, Pin(_, reason)):
            pin(other, reason)
            return Pin(other.size, reason)
        case (Free() as variable, other) | (other, Free() as variable):
            variable.value = _without_wild(other)
            return variable.value
        case (Sum(), _) | (_, Sum()):
            sizes = [stop - start for start, stop in pairwise(sorted({*_term_cuts(first), *_term_cuts(second)}))]
            return concat(map(unify, partition(first, sizes), partition(second, sizes)))
        case _:
            refined = _common_refinement(_factor_sizes(first), _factor_sizes(second))
            if refined is None:
                pin(first, "block sizes do not fit")
                return pin(second, "block sizes do not fit")
            return product(map(unify, factorize(first, refined), factorize(second, refined)))


def _without_wild(term: Term) -> Term:
    """What a variable is bound to: where the other side is constant, the variable keeps a freedom of its own."""
    term = resolve(term)
    match term:
        case Wild(size):
            return free(size)
        case Prod(factors) if any(has_wild(factor) for factor in factors):
            return product(map(_without_wild, factors))
        case Sum(parts) if any(has_wild(part) for part in parts):
            return concat(map(_without_wild, parts))
    return term


def has_wild(term: Term) -> bool:
    """Whether the tensor is constant along any part of an axis."""
    match resolve(term):
        case Wild():
            return True
        case Prod(children) | Sum(children):
            return any(map(has_wild, children))
    return False


def _cuts(sizes: Sequence[int]) -> list[int]:
    return [0, *accumulate(sizes)]


def _factor_sizes(term: Term) -> list[int]:
    return [factor.size for factor in term.factors] if isinstance(term, Prod) else [term.size]


def _term_cuts(term: Term) -> list[int]:
    return _cuts([part.size for part in term.parts]) if isinstance(term, Sum) else [0, term.size]


def _common_refinement(first: Sequence[int], second: Sequence[int]) -> list[int] | None:
    """The factor sizes that refine both factorisations of one length, or None where their strides do not divide."""
    strides = sorted({*_strides(first), *_strides(second)}, reverse=True)
    if any(outer % inner for outer, inner in pairwise(strides)):
        return None
    return [outer // inner for outer, inner in pairwise(strides)]


def _strides(sizes: Sequence[int]) -> list[int]:
    return list(accumulate(reversed(sizes), initial=1, func=lambda stride, size: stride * size))


def _take(sizes: list[int], size: int) -> list[int]:
    """Remove from the front the factors whose product is `size`."""
    taken = []
    while size > 1:
        taken.append(sizes.pop(0))
        size //= taken[-1]
    return taken
