"""The algebra of terms against brute force: the permutations that a term stands for, enumerated."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starzoo.symmetry.terms import (
    Concat,
    Constant,
    Free,
    Pinned,
    Product,
    concat,
    factorize,
    free,
    partition,
    pin,
    resolve,
    unify,
)
from starzoo.symmetry.terms import product as product_of


def leaves(term):
    match resolve(term):
        case Free() as leaf:
            return [leaf]
        case Product(children) | Concat(children):
            return list(dict.fromkeys(leaf for child in children for leaf in leaves(child)))
    return []


def evaluate(term, element):
    """The index vector of a term, given one of each variable."""
    match resolve(term):
        case Free() as leaf:
            return np.array(element[leaf])
        case Pinned(size):
            return np.arange(size)
        case Concat(parts):
            vectors, offset = [], 0
            for part in parts:
                vectors.append(evaluate(part, element) + offset)
                offset += part.size
            return np.concatenate(vectors)
        case Product((outer, *rest)):
            inner = evaluate(product_of(rest), element)
            return (evaluate(outer, element)[:, None] * len(inner) + inner).reshape(-1)
    raise AssertionError(term)


def group(*terms):
    """All joint permutations that a tensor with these axes may undergo."""
    free_leaves = list(dict.fromkeys(leaf for term in terms for leaf in leaves(term)))
    choices = product(*(list(permutations(range(leaf.size))) for leaf in free_leaves))
    elements = [dict(zip(free_leaves, choice, strict=True)) for choice in choices]
    return {tuple(tuple(evaluate(term, element)) for term in terms) for element in elements}


STRUCTURES = {
    "free": lambda: free(6),
    "pinned": lambda: Pinned(6, "fixed"),
    "2 x 3": lambda: product_of([free(2), free(3)]),
    "3 x 2": lambda: product_of([free(3), free(2)]),
    "fixed 2 x 3": lambda: product_of([Pinned(2), free(3)]),
    "2 x fixed 3": lambda: product_of([free(2), Pinned(3)]),
    "3 + 3": lambda: concat([free(3), free(3)]),
    "3 + 3 alike": lambda: concat([shared := free(3), shared]),
    "2 + 4": lambda: concat([free(2), free(4)]),
    "1 + 5": lambda: concat([Pinned(1), free(5)]),
    "2 + 2 x 2": lambda: concat([free(2), product_of([free(2), free(2)])]),
    "2 + 2 + 2": lambda: concat([free(2), free(2), free(2)]),
}


@pytest.mark.parametrize("second", STRUCTURES)
@pytest.mark.parametrize("first", STRUCTURES)
def test_unified_axes_move_alike_and_only_as_both_may(first, second):
    a, b = STRUCTURES[first](), STRUCTURES[second]()
    may_a, may_b = {p for (p,) in group(a)}, {p for (p,) in group(b)}
    joint = unify(a, b)
    after = group(a, b, joint)
    assert all(p == q == r for p, q, r in after)
    assert {p for p, _, _ in after} <= may_a & may_b


EXACT = [("free", "2 x 3"), ("3 + 3", "2 x 3"), ("2 + 4", "3 x 2"), ("3 + 3", "2 + 4"), ("2 + 2 + 2", "3 x 2")]
EXACT += [("2 x 3", "3 + 3 alike"), ("fixed 2 x 3", "3 + 3 alike"), ("2 + 2 x 2", "3 x 2"), ("2 + 2 x 2", "2 + 4")]


@pytest.mark.parametrize(("first", "second"), EXACT)
def test_unify_loses_nothing_where_the_structures_fit(first, second):
    a, b = STRUCTURES[first](), STRUCTURES[second]()
    both = {p for (p,) in group(a)} & {p for (p,) in group(b)}
    unify(a, b)
    assert {p for (p,) in group(a)} == both


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("sizes", [(3, 3), (2, 4), (1, 5), (4, 2), (2, 2, 2), (6,), (0, 6)])
def test_parts_put_together_are_the_axis(name, sizes):
    term = STRUCTURES[name]()
    before = {p for (p,) in group(term)}
    parts = partition(term, sizes)
    assert tuple(part.size for part in parts) == sizes
    after = group(term, concat(parts))
    assert all(p == q for p, q in after)
    assert {p for p, _ in after} <= before


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("sizes", [(2, 3), (3, 2), (6, 1), (1, 2, 3), (6,), (1, 6, 1)])
def test_factors_multiplied_are_the_axis(name, sizes):
    term = STRUCTURES[name]()
    before = {p for (p,) in group(term)}
    factors = factorize(term, sizes)
    assert tuple(factor.size for factor in factors) == sizes
    after = group(term, product_of(factors))
    assert all(p == q for p, q in after)
    assert {p for p, _ in after} <= before


def test_a_product_whose_strides_do_not_divide_is_pinned_with_its_reason():
    term = product_of([free(4), free(6)])
    assert factorize(term, (6, 4)) == [Pinned(6, REASON := "split across the boundary of a block"), Pinned(4, REASON)]
    assert leaves(term) == []


def test_the_first_reason_of_a_pin_is_kept():
    axis = free(5)
    pin(axis, "output")
    pin(axis, "space")
    assert resolve(axis) == Pinned(5, "output")


def test_a_constant_axis_ties_nothing():
    constant, first, second = Constant(4), free(4), free(4)
    assert unify(constant, first) is first
    assert unify(second, constant) is second
    assert len(group(first, second)) == 24 * 24


def test_a_variable_bound_to_a_partly_constant_axis_keeps_its_freedom_there():
    channels, weight = free(3), free(5)
    unify(concat([Constant(2), channels]), weight)
    assert len(group(channels, weight)) == 6 * 2


def test_every_tensor_that_shares_a_variable_sees_what_becomes_of_it():
    weight, bias, first, second = free(6), free(6), free(2), free(4)
    unify(weight, bias)
    unify(bias, concat([first, second]))
    assert leaves(weight) == [first, second]


@st.composite
def axes(draw, size, pool):
    """A random axis of a given length over a pool of variables that axes may share."""
    kinds = ["leaf", "pool", "pin"] + ["sum"] * (size > 1) + ["product"] * any(size % d == 0 for d in range(2, size))
    match draw(st.sampled_from(kinds)):
        case "leaf":
            return free(size)
        case "pool":
            return pool.setdefault(size, free(size))
        case "pin":
            return Pinned(size, "fixed")
        case "sum":
            cut = draw(st.integers(1, size - 1))
            return concat([draw(axes(cut, pool)), draw(axes(size - cut, pool))])
        case _:
            outer = draw(st.sampled_from([d for d in range(2, size) if size % d == 0]))
            return product_of([draw(axes(outer, pool)), draw(axes(size // outer, pool))])


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(0, 2**32 - 1))
def test_any_sequence_of_bonds_holds_for_random_permutations(data, seed):
    size, pool = data.draw(st.sampled_from([6, 8, 12])), {}
    terms = [data.draw(axes(size, pool)) for _ in range(4)]
    bonds = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=4))
    for first, second in bonds:
        unify(terms[first], terms[second])
    rng = np.random.default_rng(seed)
    element = {leaf: rng.permutation(leaf.size) for term in terms for leaf in leaves(term)}
    for first, second in bonds:
        assert np.array_equal(evaluate(terms[first], element), evaluate(terms[second], element))


def test_one_position_cannot_move() -> None:
    assert free(1) == Pinned(1)
    assert isinstance(free(2), Free)
