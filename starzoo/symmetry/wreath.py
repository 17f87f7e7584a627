"""Product or wreath product: may the positions inside a block be permuted differently in each block?

Take an axis (h, d), for example heads and head dimensions. The product S_h × S_d permutes all blocks alike inside; the
wreath product S_d ≀ S_h gives every block a permutation of its own. The wreath product is sound if d never occurs
without its block: along every axis of a weight, in every result of the trace, and in the batch and contracted axes of
every contraction, there is exactly one h wherever there is a d. (d may occur twice there, as in the products kᵀv of
linear attention: both times it is a position in the same block.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product as combinations

from starzoo.symmetry.terms import Concat, Free, Product, Term, atoms, concat, product, resolve

__all__ = ["find_wreaths", "rewrite", "split_inner"]

Monomial = tuple[Free, ...]
Split = Mapping[tuple[Free, Free], Free]  # for an outer and a shared inner group: the outer one's own inner group


def find_wreaths(axes: Iterable[Sequence[Term]], spaces: Iterable[Sequence[Term]]) -> dict[Free, Free]:
    """Decide which groups act blockwise within another one.

    Args:
        axes: The terms of every tensor of the state dict.
        spaces: The terms of positions that are read together, for every result and contraction of the trace.

    Returns:
        For every inner group its outer group, which is itself within none.
    """
    # A group that `split_inner` made occurs in no space: the group that was split has been checked there.
    terms = [term for tensor in axes for term in tensor]
    within: dict[Free, Free] = {}
    for before_only in (True, False):  # heads usually stand before their dimensions, but not always (NesT)
        candidates = _candidates(terms, before_only=before_only)
        interesting = {leaf for inner, outers in candidates.items() for leaf in (inner, *outers)}
        seen = (
            {monomial for space in spaces for monomial in _monomials_of(space, interesting)} if interesting else set()
        )
        for inner, outers in candidates.items():
            if inner in within or inner in within.values():
                continue
            around = [monomial for monomial in seen if inner in monomial]
            possible = (outer for outer in outers if all(monomial.count(outer) == 1 for monomial in around))
            if outer := next((outer for outer in possible if outer not in within), None):
                within[inner] = outer
    return within


def split_inner(axes: Iterable[Sequence[Term]], spaces: Iterable[Sequence[Term]]) -> Split:
    """Give the blocks of each outer group an inner group of their own, where one inner group serves several.

    Heads h₁ | h₂ | h₃ of different kinds (with kernels of three sizes, in CoaT) share the axis d of (h₁ | h₂ | h₃) × d.
    If d never occurs without one of them, the axis is h₁ × d₁ | h₂ × d₂ | h₃ × d₃.

    Args:
        axes: The terms of every tensor of the state dict.
        spaces: The terms of positions that are read together, for every result and contraction of the trace.

    Returns:
        For every pair of an outer and an inner group that was split, the new inner group, for `rewrite`.
    """
    factors_before: dict[Free, set[Monomial]] = {}  # for each group, wherever it occurs in the state dict
    for monomial in (monomial for terms in axes for term in terms for monomial in _monomials(term, None)):
        for position, leaf in enumerate(monomial):
            factors_before.setdefault(leaf, set()).add(monomial[:position])
    outers = {
        inner: [outer for (outer,) in occurrences]
        for inner, occurrences in factors_before.items()
        if len(occurrences) > 1 and all(len(before) == 1 for before in occurrences)
    }
    if not outers:
        return {}
    interesting = {leaf for inner, around in outers.items() for leaf in (inner, *around)}
    seen = {monomial for space in spaces for monomial in _monomials_of(space, interesting)}
    return {
        (outer, inner): Free(inner.size)
        for inner, around in outers.items()
        if all(sum(map(m.count, around)) == 1 for m in seen if inner in m)
        for outer in around
    }


def rewrite(term: Term, split: Split, outer: Free | None = None) -> Term:
    """Replace shared inner groups by those that `split_inner` made.

    Args:
        term: A term.
        split: The result of `split_inner`.
        outer: The group in whose blocks the term lies.

    Returns:
        The term with new inner groups.
    """
    term = resolve(term)
    match term:
        case Free() if outer is not None:
            return split.get((outer, term), term)
        case Concat(parts):
            return concat(rewrite(part, split, outer) for part in parts)
        case Product((first, *others)):
            rest = product(others)
            if isinstance(first, Concat) and any(inner in atoms(rest) for _, inner in split):
                return concat(rewrite(product([part, rest]), split, outer) for part in first.parts)
            inside = first if isinstance(first, Free) else outer
            return product([rewrite(first, split, outer), rewrite(rest, split, inside)])
    return term


def _candidates(terms: Iterable[Term], *, before_only: bool) -> dict[Free, list[Free]]:
    """For every group, those that are another (or an earlier) factor of its product wherever it occurs."""
    candidates: dict[Free, list[Free]] = {}
    for leaf, outers in (pair for term in terms for pair in _nested(term, (), before_only)):
        candidates[leaf] = [outer for outer in candidates.get(leaf, outers) if outer in outers]
    return {inner: outers for inner, outers in candidates.items() if outers}


def _nested(term: Term, outers: Monomial, before_only: bool) -> Iterator[tuple[Free, Monomial]]:
    match resolve(term):
        case Free() as leaf:
            yield leaf, outers
        case Concat(parts):
            for part in parts:
                yield from _nested(part, outers, before_only)
        case Product(factors):
            for position, factor in enumerate(factors):
                others = factors[:position] if before_only else factors[:position] + factors[position + 1 :]
                around = tuple(other for other in map(resolve, others) if isinstance(other, Free))
                yield from _nested(factor, outers + around, before_only)


def _monomials_of(terms: Iterable[Term], interesting: Collection[Free] | None) -> set[Monomial]:
    """The sets of groups that meet at some position of a space: the monomials of a polynomial over its axes."""
    choices = [_monomials(term, interesting) for term in terms]
    return {sum(choice, ()) for choice in combinations(*choices)}


def _monomials(term: Term, interesting: Collection[Free] | None) -> set[Monomial]:
    match resolve(term):
        case Free() as leaf if interesting is None or leaf in interesting:
            return {(leaf,)}
        case Product(factors):
            return _monomials_of(factors, interesting)
        case Concat(parts):
            return {monomial for part in parts for monomial in _monomials(part, interesting)}
    return {()}
