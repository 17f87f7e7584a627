"""Which source and which t a step draws: random numbers keyed by (seed, step, rank), no global state.

A draw depends on nothing but its key, so a resumed run draws what the uninterrupted one would have drawn, and N ranks
with one draw each draw what one rank with N draws per step would.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from starzoo.config import Beta, Constant, StarConfig, Uniform

__all__ = ["Draw", "SourceSampler"]

_SOURCES, _TIMES = 0, 1  # independent streams of one seed


@dataclass(frozen=True)
class Draw:
    """What one mini-batch is evaluated at.

    Attributes:
        source: Number of the source n.
        t: Place on the path, 0 at the star and 1 at the source.
    """

    source: int
    t: float


@dataclass(frozen=True)
class SourceSampler:
    """Draws the (source, t) of every step (paper, algorithm 1).

    Attributes:
        config: Says how t is distributed and how sources are drawn.
        sources: The number N of sources.
        ranks: Draws per step, one for each rank.
    """

    config: StarConfig
    sources: int
    ranks: int = 1

    def draw(self, step: int, rank: int = 0) -> Draw:
        """The draw of one rank at one step.

        Args:
            step: The optimiser step, from 0.
            rank: The rank, from 0.

        Returns:
            The draw.
        """
        number = step * self.ranks + rank
        return Draw(self._source(number), self._time(number))

    def _source(self, number: int) -> int:
        if self.config.draw == "independent":
            return int(self._rng(_SOURCES, number).integers(self.sources))
        # A deck deals every source once before any comes again: the mean over sources with less variance.
        deck, card = divmod(number, self.sources)
        return int(self._rng(_SOURCES, deck).permutation(self.sources)[card])

    def _time(self, number: int) -> float:
        rng = self._rng(_TIMES, number)
        match self.config.t:
            case Uniform(low=low, high=high):
                return float(rng.uniform(low, high))
            case Beta(a=a, b=b):
                return float(rng.beta(a, b))
            case Constant(value=value):
                return value

    def _rng(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, stream, number])
