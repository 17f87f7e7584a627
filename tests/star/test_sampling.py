"""The draws of a run: keyed, balanced, and the same however they are spread over ranks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from starzoo.config import Beta, Constant, StarConfig, Uniform
from starzoo.star.sampling import SourceSampler


def test_a_deck_deals_every_source_once_before_any_comes_again() -> None:
    sampler = SourceSampler(StarConfig(), sources=5)
    dealt = [sampler.draw(step).source for step in range(50)]
    for deck in range(10):
        assert sorted(dealt[5 * deck : 5 * deck + 5]) == [0, 1, 2, 3, 4]
    assert dealt[:5] != dealt[5:10]


def test_independent_draws_are_uniform_but_no_deck() -> None:
    sampler = SourceSampler(StarConfig(source_order="independent"), sources=4)
    dealt = [sampler.draw(step).source for step in range(2000)]
    assert np.bincount(dealt) / 2000 == pytest.approx(np.full(4, 0.25), abs=0.04)
    assert any(len(set(dealt[4 * deck : 4 * deck + 4])) < 4 for deck in range(20))


def test_a_draw_depends_on_its_key_alone() -> None:
    one, two = SourceSampler(StarConfig(seed=3), sources=7), SourceSampler(StarConfig(seed=3), sources=7)
    assert [one.draw(step) for step in range(9)] == [two.draw(step) for step in reversed(range(9))][::-1]
    assert one.draw(4) != SourceSampler(StarConfig(seed=4), sources=7).draw(4)


def test_two_ranks_draw_what_one_rank_with_two_draws_per_step_would() -> None:
    alone, shared = SourceSampler(StarConfig(), 6), SourceSampler(StarConfig(), 6, draws=2)
    spread = [shared.draw(step, rank) for step in range(10) for rank in range(2)]
    assert spread == [alone.draw(number) for number in range(20)]


@pytest.mark.parametrize(
    ("t", "mean", "variance"),
    [
        (Uniform(), 0.5, 1 / 12),
        (Uniform(low=0.25, high=0.75), 0.5, 1 / 48),
        (Beta(), 0.5, 1 / 20),
        (Constant(value=0.5), 0.5, 0.0),
    ],
)
def test_t_has_the_distribution_that_is_asked_for(t: Uniform | Beta | Constant, mean: float, variance: float) -> None:
    sampler = SourceSampler(StarConfig(t=t, mu=0), sources=3)
    drawn = np.array([sampler.draw(step).t for step in range(4000)])
    assert drawn.mean() == pytest.approx(mean, abs=0.02)
    assert drawn.var() == pytest.approx(variance, abs=0.005)
    assert ((drawn >= 0) & (drawn <= 1)).all()


@pytest.mark.parametrize("order", ["shuffled", "independent"])
def test_the_star_itself_is_drawn_as_often_as_its_weight_says(order: str) -> None:
    sampler = SourceSampler(StarConfig(mu=0.25, source_order=order), 4)  # type: ignore[arg-type]
    draws = [sampler.draw(step) for step in range(2000)]
    own = [each for each in draws if each.at_star]
    assert all(each.t == 0 for each in own)
    assert all(each.t > 0 for each in draws if not each.at_star)
    assert len(own) == pytest.approx(400, abs=1 if order == "shuffled" else 60)
    if order == "shuffled":
        steps = [step for step, each in enumerate(draws) if each.at_star]
        assert {after - before for before, after in itertools.pairwise(steps)} == {5}
    assert not any(SourceSampler(StarConfig(mu=0), 4).draw(step).at_star for step in range(100))
