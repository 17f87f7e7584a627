"""The source and the t that each step draws, keyed by (seed, step, draw).

A draw depends on its key alone, so a resumed run draws what the uninterrupted one would have drawn, and N processes
with one draw each draw what one process with N draws per step would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from starzoo.config import Beta, Constant, StarConfig, Uniform

__all__ = ["Draw", "SourceSampler"]

_SOURCE, _T, _FORWARD, _TERM = 0, 1, 2, 3  # independent streams of one seed


@dataclass(frozen=True)
class Draw:
    """The point at which one mini-batch is evaluated.

    Attributes:
        source: Index of the source n.
        t: Position on the path, 0 at the star and 1 at the source.
        at_star: Whether the loss's term for the star itself was drawn, and t is 0.
    """

    source: int
    t: float
    at_star: bool = False


@dataclass(frozen=True)
class SourceSampler:
    """Draws the (source, t) of every step (paper, algorithm 1).

    Attributes:
        config: The distribution of t, the order of the sources, and with μ the probability of the star itself.
        sources: The number N of sources.
        draws: Draws per step, over all processes.
    """

    config: StarConfig
    sources: int
    draws: int = 1

    def draw(self, step: int, index: int = 0) -> Draw:
        """One of the draws of a step.

        Args:
            step: The optimizer step, from 0.
            index: The index of the draw in the step, from 0.

        Returns:
            The draw.
        """
        number = step * self.draws + index
        at_star = self._is_at_star(number)
        return Draw(self._source(number), 0.0 if at_star else self._t(number), at_star)

    def forward_seed(self, step: int, index: int = 0) -> int:
        """The seed of everything else that is random in a draw's forward passes, for example dropout.

        Args:
            step: The optimizer step, from 0.
            index: The index of the draw in the step, from 0.

        Returns:
            The seed.
        """
        return int(self._rng(_FORWARD, step * self.draws + index).integers(2**63))

    def _source(self, number: int) -> int:
        if self.config.source_order == "independent":
            return int(self._rng(_SOURCE, number).integers(self.sources))
        # Every source comes once before any comes again: the same mean over sources with less variance.
        round_number, position = divmod(number, self.sources)
        return int(self._rng(_SOURCE, round_number).permutation(self.sources)[position])

    def _is_at_star(self, number: int) -> bool:
        probability = self.config.mu / (1 + self.config.mu)
        if self.config.source_order == "independent":
            return bool(self._rng(_TERM, number).random() < probability)
        # At even distances from a random offset: the same mean with less variance.
        offset = self._rng(_TERM, 0).random()
        return math.floor((number + 1) * probability + offset) > math.floor(number * probability + offset)

    def _t(self, number: int) -> float:
        rng = self._rng(_T, number)
        match self.config.t:
            case Uniform(low=low, high=high):
                return float(rng.uniform(low, high))
            case Beta(a=a, b=b):
                return float(rng.beta(a, b))
            case Constant(value=value):
                return value

    def _rng(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, stream, number])
