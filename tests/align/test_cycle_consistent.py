"""All models at once: the sum over pairs, which never falls, and where it ends."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from starzoo.align.cycle_consistent import match_cycle_consistent
from starzoo.align.weight_matching import WeightMatcher
from starzoo.symmetry import Permutation
from tests.align.networks import make, spec_of

NETWORKS = ["residual", "attention"]


def agreement(network: str, states, permutations) -> float:
    """Σ_{p<q} ⟨π_p A_p, π_q A_q⟩."""
    spec = spec_of(network)
    moved = [p.apply(state) for p, state in zip(permutations, states, strict=True)]
    names = [name for name in spec.axes if spec.is_permuted(name)]
    return sum(float((a[n].double() * b[n].double()).sum()) for a, b in itertools.combinations(moved, 2) for n in names)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_agrees_more_than_models_that_were_matched_one_by_one(network: str, seed: int) -> None:
    spec = spec_of(network)
    states = [make(network, 10 * seed + number).state_dict() for number in range(4)]
    identity = Permutation.identity(spec)
    matcher = WeightMatcher(spec, states[0])
    one_by_one = [identity, *(matcher.match(state, identity).permutation for state in states[1:])]
    at_once = match_cycle_consistent(spec, states, np.random.default_rng(seed))
    assert agreement(network, states, at_once) > agreement(network, states, one_by_one)


@pytest.mark.parametrize("network", NETWORKS)
def test_ends_where_no_model_wants_to_move(network: str) -> None:
    spec = spec_of(network)
    states = [make(network, number).state_dict() for number in range(4)]
    found = match_cycle_consistent(spec, states, np.random.default_rng(0))
    moved = [p.apply(state) for p, state in zip(found, states, strict=True)]
    for number, (state, permutation) in enumerate(zip(states, found, strict=True)):
        others = {name: sum(m[name] for n, m in enumerate(moved) if n != number) for name in state}
        again = WeightMatcher(spec, others).match(state, permutation)
        assert again.permutation.count_moved(permutation) == 0


def test_one_model_stays_and_two_are_a_pair() -> None:
    spec, rng = spec_of("residual"), np.random.default_rng(0)
    states = [make("residual", number).state_dict() for number in range(2)]
    assert match_cycle_consistent(spec, states[:1], rng)[0].count_moved(Permutation.identity(spec)) == 0
    first, second = match_cycle_consistent(spec, states, np.random.default_rng(0))
    relative = first.inverse().compose(second)
    [names] = [[name for name in spec.axes if spec.is_permuted(name)]]
    moved = relative.apply(states[1])
    assert sum(float((states[0][n] * moved[n]).sum()) for n in names) > sum(
        float((states[0][n] * states[1][n]).sum()) for n in names
    )


def test_copies_of_one_model_meet_exactly() -> None:
    spec, state = spec_of("residual"), make("residual", 0).state_dict()
    copies = [Permutation.random(spec, np.random.default_rng(seed)).apply(state) for seed in range(5)]
    found = match_cycle_consistent(spec, copies, np.random.default_rng(0))
    placed = [p.apply(copy) for p, copy in zip(found, copies, strict=True)]
    assert all(torch.equal(each[name], placed[0][name]) for each in placed for name in state)
