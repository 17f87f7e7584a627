"""Product or wreath: may the positions inside a block be permuted differently in each block?

For an axis (h, d), such as heads and head dimensions, the product S_h × S_d permutes all blocks alike inside, and the
wreath product S_d ≀ S_h gives every block a permutation of its own. The wreath product is sound if d can nowhere be
seen without the block it belongs to: in every tensor of the trace, and in the batch and contracted axes of every
contraction, wherever d occurs it occurs once, together with exactly one h.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import product

from starzoo.symmetry.terms import Free, Prod, Sum, Term, resolve

__all__ = ["find_wreaths"]

Monomial = tuple[Free, ...]


def find_wreaths(axes: Iterable[Sequence[Term]], spaces: Iterable[Sequence[Term]]) -> dict[Free, Free]:
    """Decide which groups act blockwise within another one.

    Args:
        axes: The terms of every tensor of the state dict.
        spaces: For every tensor and contraction of the trace, the terms of the positions that are read together.

    Returns:
        For every inner group its outer group, which is itself within none.
    """
    candidates = _candidates(axes)
    interesting = {leaf for inner, outers in candidates.items() for leaf in (inner, *outers)}
    if not interesting:
        return {}
    seen = {monomial for space in spaces for monomial in _joint(space, interesting)}
    within: dict[Free, Free] = {}
    for inner, outers in candidates.items():
        around = [monomial for monomial in seen if inner in monomial]
        for outer in outers:
            free = outer not in within and inner not in within.values()
            if free and all(monomial.count(inner) == monomial.count(outer) == 1 for monomial in around):
                within[inner] = outer
                break
    return within


def _candidates(axes: Iterable[Sequence[Term]]) -> dict[Free, list[Free]]:
    """For every group, those that are an earlier factor of a product around it wherever it occurs in the state dict."""
    candidates: dict[Free, list[Free]] = {}
    for leaf, outers in (pair for terms in axes for term in terms for pair in _nested(term, ())):
        candidates[leaf] = [outer for outer in candidates.get(leaf, outers) if outer in outers]
    return {inner: outers for inner, outers in candidates.items() if outers}


def _nested(term: Term, outers: Monomial) -> Iterator[tuple[Free, Monomial]]:
    match resolve(term):
        case Free() as leaf:
            yield leaf, outers
        case Sum(parts):
            for part in parts:
                yield from _nested(part, outers)
        case Prod(factors):
            for factor in map(resolve, factors):
                yield from _nested(factor, outers)
                outers += (factor,) if isinstance(factor, Free) else ()


def _joint(terms: Iterable[Term], interesting: Collection[Free]) -> set[Monomial]:
    """The groups that meet at some position of a space, as a sum of products over its axes."""
    choices = [_monomials(term, interesting) for term in terms]
    return {sum(choice, ()) for choice in product(*choices)}


def _monomials(term: Term, interesting: Collection[Free]) -> set[Monomial]:
    match resolve(term):
        case Free() as leaf if leaf in interesting:
            return {(leaf,)}
        case Prod(factors):
            return _joint(factors, interesting)
        case Sum(parts):
            return {monomial for part in parts for monomial in _monomials(part, interesting)}
    return {()}
