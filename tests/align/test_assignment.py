"""The assignment solver against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

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


@pytest.mark.parametrize("n", [1, 2, 7, 100])
@pytest.mark.parametrize("kind", ["noise", "planted", "rank one", "columns", "ties", "constant", "tiny", "huge"])
def test_prices_change_no_optimum(kind: str, n: int) -> None:
    """Against plain scipy, on gains of every character: what the prices are worth only decides how long it takes."""
    rng = np.random.default_rng(n)
    noise = rng.normal(size=(n, n))
    gain = {
        "noise": noise,
        "planted": noise + 9 * np.eye(n)[rng.permutation(n)],
        "rank one": noise + 30 * np.outer(rng.normal(size=n), rng.normal(size=n)),
        "columns": noise + 1e4 * rng.normal(size=n),
        "ties": noise.round(),
        "constant": np.full((n, n), 3.0),
        "tiny": noise * 1e-30,
        "huge": noise * 1e30,
    }[kind]
    places = np.arange(n)
    found = solve_assignment(gain)
    best = gain[linear_sum_assignment(gain, maximize=True)].sum()
    assert np.array_equal(np.sort(found), places)
    assert gain[places, found].sum() == pytest.approx(best, rel=1e-9, abs=0)
    assert np.array_equal(found, solve_assignment(gain))
