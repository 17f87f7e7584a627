"""The assignment solver against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from starzoo.align.assignment import solve_assignment


@pytest.mark.parametrize("seed", range(5))
def test_finds_the_best_of_all_permutations(seed: int) -> None:
    gain = np.random.default_rng(seed).normal(size=(6, 6))
    best = max(sum(gain[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(6)))
    found = solve_assignment(gain)
    assert gain[np.arange(6), found].sum() == pytest.approx(best)
    assert sorted(found) == list(range(6))


def test_rank_one_terms_of_any_size_do_not_spoil_it() -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(50)
    gain = rng.normal(size=(50, 50)) + np.outer(rng.normal(size=50), np.ones(50)) * 1e6
    gain[np.arange(50), order] += 100
    assert solve_assignment(gain).tolist() == order.tolist()
