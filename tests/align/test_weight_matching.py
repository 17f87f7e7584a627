"""Weight matching against what it must find, and against a slow and obvious reference."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from starzoo.align.group_views import plan_steps
from starzoo.align.weight_matching import WeightMatcher, _CoordinateAscent
from starzoo.symmetry import Permutation, PermutationSpec, infer
from starzoo.symmetry.terms import groups_of
from tests.align.networks import make, spec_of

NETWORKS = ["residual", "attention"]


def inner_product(spec: PermutationSpec, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return sum(float((a[name].double() * b[name].double()).sum()) for name in spec.axes if spec.is_permuted(name))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_undoes_a_random_permutation(network: str, seed: int) -> None:
    spec, state = spec_of(network), make(network, seed).state_dict()
    shuffle = Permutation.random(spec, np.random.default_rng(seed))
    shuffled = shuffle.apply(state)
    assert any(not torch.equal(shuffled[name], state[name]) for name in state)
    found = WeightMatcher(spec, state).match(shuffled, Permutation.identity(spec))
    restored = found.permutation.apply(shuffled)
    assert all(torch.equal(restored[name], state[name]) for name in state)
    assert found.permutation.compose(shuffle).count_moved(Permutation.identity(spec)) == 0


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(4))
def test_objective_never_falls_and_is_what_it_says(network: str, seed: int) -> None:
    spec = spec_of(network)
    fixed, permutee = make(network, seed).state_dict(), make(network, seed + 50).state_dict()
    found = WeightMatcher(spec, fixed).match(permutee, Permutation.identity(spec))
    assert found.objective[-1] > found.objective[0]
    moved = found.permutation.apply(permutee)
    assert found.objective[-1] == pytest.approx(inner_product(spec, fixed, moved), rel=1e-5)


@pytest.mark.parametrize("network", [*NETWORKS, "loop", "blocks"])
@pytest.mark.parametrize("seed", range(3))
def test_every_step_gains_what_it_says(network: str, seed: int) -> None:
    spec, fixed, permutee = case(network, seed)
    matcher = WeightMatcher(spec, fixed)
    ascent = _CoordinateAscent(matcher, permutee, Permutation.random(spec, np.random.default_rng(seed)))
    stands, gains = inner_product(spec, fixed, ascent.permutation.apply(permutee)), []
    for group in (*matcher.groups, *reversed(matcher.groups)):
        gains.append(ascent.improve(group))
        now = inner_product(spec, fixed, ascent.permutation.apply(permutee))
        assert now - stands == pytest.approx(gains[-1], rel=1e-4, abs=1e-4)
        stands = now
    assert min(gains) >= 0
    assert max(gains) > 0


@pytest.mark.parametrize("network", NETWORKS)
def test_matching_again_moves_nothing_in_one_sweep(network: str) -> None:
    spec = spec_of(network)
    matcher = WeightMatcher(spec, make(network, 1).state_dict())
    permutee = make(network, 2).state_dict()
    first = matcher.match(permutee, Permutation.identity(spec))
    again = matcher.match(permutee, first.permutation)
    assert again.permutation.count_moved(first.permutation) == 0
    assert again.sweeps == 1


def test_reaches_what_a_dense_reference_reaches_from_the_same_order() -> None:
    spec = spec_of("residual")
    for seed in range(5):
        fixed, permutee = make("residual", seed).state_dict(), make("residual", seed + 20).state_dict()
        found = WeightMatcher(spec, fixed).match(permutee, Permutation.identity(spec))
        reference = match_slowly(spec, fixed, permutee)
        ours = inner_product(spec, fixed, found.permutation.apply(permutee))
        theirs = inner_product(spec, fixed, reference.apply(permutee))
        assert ours >= theirs - 0.005 * abs(theirs)


def match_slowly(spec: PermutationSpec, fixed: Mapping[str, Tensor], permutee: Mapping[str, Tensor]) -> Permutation:
    """Git Re-Basin's algorithm 1 by the book, one product for each entry of each group's gain."""
    current = Permutation.identity(spec)
    order, progress = list(spec.groups), True
    while progress:
        progress = False
        for group in order:
            n = spec.groups[group].size
            gain = np.zeros((n, n))
            others = Permutation(spec, {**current.indices, group: np.arange(n)}).apply(permutee)
            for tensor, axis in spec.occurrences[group]:
                size = spec.axes[tensor][axis].size
                a, b = fixed[tensor].movedim(axis, 0), others[tensor].movedim(axis, 0)
                # Every axis here is the group itself, or the group as the outer factor of channels x pixels.
                a, b = a.reshape(n, size // n, -1).flatten(1), b.reshape(n, size // n, -1).flatten(1)
                for i, j in itertools.product(range(n), range(n)):
                    gain[i, j] += float(a[i] @ b[j])
            before = gain[np.arange(n), current.indices[group]].sum()
            _, best = linear_sum_assignment(gain, maximize=True)
            if gain[np.arange(n), best].sum() > before + 1e-9:
                current = Permutation(spec, {**current.indices, group: best})
                progress = True
        order.reverse()
    return current


class Loop(nn.Module):
    """A group that meets itself, on both axes of a residual layer; and two parallel branches."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.loop = nn.Linear(width, width)
        self.up = nn.ModuleList([nn.Linear(width, 5) for _ in range(2)])
        self.down = nn.ModuleList([nn.Linear(5, width) for _ in range(2)])
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.loop(x).relu()
        x = x + self.down[0](self.up[0](x).relu()) + self.down[1](self.up[1](x).relu())
        return self.head(x)


def loop(seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Loop().state_dict()


class Blocks(nn.Module):
    """Channels that count as (block, a, b): blocks may be permuted, and a and b in each block by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 3 * 4 * 5)
        self.down = nn.Linear(3 * 4 * 5, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x).unflatten(-1, (3, 4, 5))
        y = y * y.mean(-1, keepdim=True).tanh() * y.mean((-1, -2), keepdim=True).sigmoid()
        y = y * (1 + y.amax((-1, -2), keepdim=True)).softmax(-3)
        return self.down(y.flatten(1))


def blocks(seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {name: tensor + 0.3 * torch.randn_like(tensor) for name, tensor in Blocks().state_dict().items()}


@pytest.mark.parametrize("seed", range(8))
def test_groups_that_describe_the_same_positions_take_turns(seed: int) -> None:
    spec, fixed, permutee = case("blocks", seed)
    ((outer, inner),) = ((name, inner) for name, inner in spec.inner_groups.items() if inner)
    assert [step.inner for step in plan_steps(spec)[outer]] == [(name,) for name in inner]
    assert len(inner) == 2
    matcher, shuffle = WeightMatcher(spec, fixed), Permutation.random(spec, np.random.default_rng(seed))
    for start in (Permutation.identity(spec), shuffle):
        found = matcher.match(permutee, start)
        for permutation, value in ((start, found.objective[0]), (found.permutation, found.objective[-1])):
            true = inner_product(spec, fixed, permutation.apply(permutee))
            assert value == pytest.approx(true, rel=1e-4, abs=1e-4)
        again = matcher.match(permutee, found.permutation)
        assert again.permutation.count_moved(found.permutation) == 0
    # What was permuted comes back from nearby: two blocks and some channels in each are out of place.
    swapped = {
        name: np.array([1, 0, *range(2, index.size)]) if index.ndim == 1 else index[:, np.r_[1, 0, 2 : index.shape[1]]]
        for name, index in Permutation.identity(spec).indices.items()
        if name in {outer, *inner}
    }
    plant = Permutation(spec, {**Permutation.identity(spec).indices, **swapped})
    back = matcher.match(plant.apply(fixed), Permutation.identity(spec)).permutation
    assert back.compose(plant).count_moved(Permutation.identity(spec)) == 0


def case(network: str, seed: int) -> tuple[PermutationSpec, Mapping[str, Tensor], Mapping[str, Tensor]]:
    if network == "loop":
        return infer(Loop(), torch.zeros(1, 4)), loop(seed), loop(seed + 20)
    if network == "blocks":
        return infer(Blocks(), torch.zeros(1, 6)), blocks(seed), blocks(seed + 20)
    return spec_of(network), make(network, seed).state_dict(), make(network, seed + 20).state_dict()


@pytest.mark.parametrize("network", [*NETWORKS, "loop", "blocks"])
@pytest.mark.parametrize("seed", range(3))
def test_gains_that_are_kept_up_to_date_are_those_computed_anew(network: str, seed: int) -> None:
    """A group is given another permutation at random, and all gains are asked for at some of those moments."""
    spec, fixed, permutee = case(network, seed)
    matcher, rng = WeightMatcher(spec, fixed), np.random.default_rng(seed)
    ascent = _CoordinateAscent(matcher, permutee, Permutation.identity(spec))
    for _ in range(10):
        outer = rng.choice(matcher.groups)
        other = Permutation.random(spec, rng).indices
        moved = {**ascent.permutation.indices, **{name: other[name] for name in (outer, *spec.inner_groups[outer])}}
        ascent.permutation = Permutation(spec, moved)
        if rng.random() < 0.5:
            anew = _CoordinateAscent(matcher, permutee, ascent.permutation)
            for step in (step for steps in matcher.steps.values() for step in steps):
                for name in (step.outer, *step.inner):
                    kept, computed = (each._gain(step, name, each._unpermuted(step)) for each in (ascent, anew))
                    np.testing.assert_allclose(kept, computed, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_ascends_where_a_group_meets_itself(seed: int) -> None:
    spec, fixed, permutee = case("loop", seed)
    matcher = WeightMatcher(spec, fixed)
    for group, (step,) in matcher.steps.items():
        assert step.is_quadratic == (spec.groups[group].size == 8)
    start = Permutation.random(spec, np.random.default_rng(seed))
    found = matcher.match(permutee, start)
    for permutation, value in ((start, found.objective[0]), (found.permutation, found.objective[-1])):
        assert value == pytest.approx(inner_product(spec, fixed, permutation.apply(permutee)), rel=1e-5)
    assert matcher.match(permutee, found.permutation).permutation.count_moved(found.permutation) == 0


def test_tensors_that_are_zero_have_no_say_and_stopping_early_is_possible() -> None:
    spec, fixed, permutee = case("residual", 0)
    no_progress = {name: tensor * (tensor.ndim > 1) for name, tensor in fixed.items()}
    matcher = WeightMatcher(spec, no_progress)
    assert {name for tensors in matcher.tensors.values() for name in tensors} == {
        name for name in spec.permuted_tensors if fixed[name].ndim > 1
    }
    found = matcher.match(permutee, Permutation.identity(spec))
    assert found.objective[-1] == pytest.approx(
        inner_product(spec, no_progress, found.permutation.apply(permutee)), rel=1e-5
    )
    short = WeightMatcher(spec, no_progress, max_sweeps=1).match(permutee, Permutation.identity(spec))
    assert short.sweeps == 1
    assert short.objective[-1] < found.objective[-1]


@pytest.mark.parametrize("seed", range(4))
def test_wreath_group_is_solved_to_the_optimum(seed: int) -> None:
    """Heads and the dimensions within each head, together, against every element of the wreath product."""
    spec = spec_of("attention")
    inner = [name for name, group in spec.groups.items() if group.within is not None]
    outer = spec.groups[inner[0]].within
    assert len(inner) == 2
    assert outer is not None
    fixed, permutee = make("attention", seed).state_dict(), make("attention", seed + 9).state_dict()
    matcher = WeightMatcher(spec, fixed)
    (step,) = matcher.steps[outer]
    solution = _CoordinateAscent(matcher, permutee, Permutation.identity(spec)).solve(step)
    ours = inner_product(
        spec, fixed, Permutation(spec, {**Permutation.identity(spec).indices, **solution}).apply(permutee)
    )
    best = -np.inf
    rows = [np.array(order) for order in itertools.permutations(range(3))]
    identity = Permutation.identity(spec)
    for heads in itertools.permutations(range(2)):
        # The inner groups do not meet in any tensor axis position, so each has an optimum of its own.
        parts = [
            max(
                gain_of(spec, fixed, permutee, {**identity.indices, outer: np.array(heads), name: np.stack(pair)}, name)
                for pair in itertools.product(rows, rows)
            )
            for name in inner
        ]
        rest = inner_product(spec, fixed, permutee) - sum(
            gain_of(spec, fixed, permutee, identity.indices, name) for name in inner
        )
        best = max(best, sum(parts) + rest)
    assert ours == pytest.approx(best, rel=1e-5)


def gain_of(
    spec: PermutationSpec,
    fixed: Mapping[str, Tensor],
    permutee: Mapping[str, Tensor],
    indices: Mapping[str, np.ndarray],
    group: str,
) -> float:
    """The part of the inner product that lies at a wreath group's own places."""
    moved = Permutation(spec, indices).apply(permutee)
    return sum(
        float((view.rows(fixed[view.tensor]).double() * view.rows(moved[view.tensor]).double()).sum())
        for (step,) in plan_steps(spec).values()
        for view in step.occurrences.get(group, ())
    )


@pytest.mark.parametrize("network", [*NETWORKS, "loop", "blocks"])
def test_occurrences_of_one_step_per_outer_group_cover_every_permuted_position_once(network: str) -> None:
    spec, *_ = case(network, 0)
    for steps in itertools.product(*plan_steps(spec).values()):
        occurrences = [one for step in steps for group in step.occurrences.values() for one in group]
        for tensor, terms in spec.axes.items():
            for axis, term in enumerate(terms):
                if list(groups_of(term)):
                    found = [one.indices.reshape(-1) for one in occurrences if (one.tensor, one.axis) == (tensor, axis)]
                    assert sorted(np.concatenate(found)) == list(range(term.size))
