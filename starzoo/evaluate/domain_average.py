"""Bayesian model averaging over the star domain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from starzoo.config import Uniform
from starzoo.evaluate.results import DomainSampling
from starzoo.models.weights import StateDict, interpolate

__all__ = [
    "FULL_RANGE",
    "NEAR_STAR",
    "Point",
    "choose",
    "draw_points",
    "ensemble_sizes",
    "ranges",
    "running_average",
]

Predict = Callable[[StateDict], Mapping[str, Tensor]]

NEAR_STAR = Uniform(low=0.0, high=0.5)
"""Where points of the star domain are drawn if nothing chose a better range: the residual barrier lies beyond."""
FULL_RANGE = Uniform(low=0.0, high=1.0)
_RANGES = tuple(Uniform(low=low, high=high) for low, high in ((0.0, 0.25), (0.0, 0.5), (0.25, 0.75), (0.5, 1.0)))


class Point(NamedTuple):
    """A point of a star domain: at t on the line from the star (t = 0) to a source (t = 1)."""

    source: str
    t: float


def draw_points(names: Sequence[str], samples: int, seed: int | np.random.Generator, t: Uniform) -> list[Point]:
    """Draw points of the star domain: sources from a shuffled deck, each with a place on its line.

    No source comes again before all others have come: points on lines to different sources differ most.
    """
    rng, drawn = np.random.default_rng(seed), list[Point]()
    while len(drawn) < samples:
        drawn += [Point(names[int(at)], float(rng.uniform(t.low, t.high))) for at in rng.permutation(len(names))]
    return drawn[:samples]


def ranges(*, tuned: bool) -> tuple[Uniform, ...]:
    """The ranges of t to choose from; only one where there are no validation images to choose by."""
    return _RANGES if tuned else (NEAR_STAR,)


def ensemble_sizes(most: int) -> list[int]:
    """How many models to average: 2, 4, 8 and so on, and the greatest number itself, if that is more than one."""
    return [*(2**power for power in range(1, most.bit_length()) if 2**power < most), *([most] if most > 1 else [])]


def running_average(
    star: StateDict, sources: Mapping[str, StateDict], points: Sequence[Point], predict: Predict
) -> Iterator[dict[str, Tensor]]:
    """Average the predictions of more and more points of the star domain (Bayesian model averaging)."""
    total: dict[str, Tensor] = {}
    for count, (name, t) in enumerate(points, start=1):
        found = predict(interpolate(star, sources[name], t))
        total = {split: torch.logaddexp(total[split], each) if total else each for split, each in found.items()}
        yield {split: each - float(np.log(count)) for split, each in total.items()}


def choose(losses: Mapping[Uniform, Sequence[float]]) -> DomainSampling:
    """The range of t and the number of points with the least loss; of equal ones, the nearest and fewest."""
    found = [(loss, samples, t) for t, row in losses.items() for samples, loss in enumerate(row, start=1)]
    loss, samples, t = min(found, key=lambda each: (each[0], each[2].low + each[2].high, each[1]))
    return DomainSampling(t=t, samples=samples, nll=loss)
