"""Bayesian model averaging over the star domain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from starzoo.config import Uniform
from starzoo.evaluate.results import DomainSampling
from starzoo.metrics import prediction_entropy

__all__ = [
    "FULL_RANGE",
    "NEAR_STAR",
    "T_RANGES",
    "Point",
    "choose_t_range",
    "draw_points",
    "entropy_of",
    "powers_of_two",
    "running_average",
]

NEAR_STAR = Uniform(low=0.0, high=0.5)
"""Where points of the star domain are drawn without validation images: the residual barrier lies beyond."""
FULL_RANGE = Uniform(low=0.0, high=1.0)
T_RANGES = tuple(Uniform(low=low, high=high) for low, high in ((0.0, 0.25), (0.0, 0.5), (0.25, 0.75), (0.5, 1.0)))
"""The ranges from which validation images choose one."""


class Point(NamedTuple):
    """A point of a star domain: t on the line from the star (0) to a source (1)."""

    source: str
    t: float


def draw_points(names: Sequence[str], samples: int, seed: int | np.random.Generator, t: Uniform) -> list[Point]:
    """Draw points of the star domain, each source once per shuffled round.

    Points on lines to different sources differ most.
    """
    rng, points = np.random.default_rng(seed), list[Point]()
    while len(points) < samples:
        points += [Point(names[index], float(rng.uniform(t.low, t.high))) for index in rng.permutation(len(names))]
    return points[:samples]


def powers_of_two(models: int) -> list[int]:
    """Return the sizes of ensembles: 2, 4, 8 and so on, and the number of models itself, if that is more than one."""
    powers = [2**power for power in range(1, models.bit_length()) if 2**power < models]
    return [*powers, models] if models > 1 else []


def running_average(
    predictions: Iterable[Mapping[str, Tensor]], counts: Container[int]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Average the first predictions, and yield the means of some numbers of them; one prediction at a time is kept.

    Beside the mean of several is the mean of their entropies, by split named by `entropy_of`.
    """
    total: dict[str, Tensor] = {}
    entropies: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
    count = 0
    for predicted in predictions:
        count += 1  # noqa: SIM113 - `enumerate` would keep a prediction while the next one is made
        for split, log in predicted.items():
            total[split] = torch.logaddexp(total[split], log, out=total[split]) if split in total else log.clone()
            entropies[entropy_of(split)] = entropies[entropy_of(split)] + prediction_entropy(log)
        del predicted, log
        if count in counts:
            means = {split: log - float(np.log(count)) for split, log in total.items()}
            yield count, means | {name: summed / count for name, summed in entropies.items() if count > 1}


def entropy_of(split: str) -> str:
    """Name the mean entropies of the predictions that were averaged, of shape (images,)."""
    return f"entropy of {split}"


def choose_t_range(losses: Mapping[Uniform, Sequence[float]]) -> DomainSampling:
    """Choose the range of t and the number of points with the least loss; of equal ones, the nearest and fewest."""
    candidates = [
        (loss, t.low + t.high, samples, t) for t, row in losses.items() for samples, loss in enumerate(row, start=1)
    ]
    loss, _, samples, t = min(candidates, key=lambda candidate: candidate[:3])
    return DomainSampling(t=t, samples=samples, nll=loss)
