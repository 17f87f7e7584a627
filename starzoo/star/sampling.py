"""Which source and which t a step draws: random numbers keyed by (seed, step, draw), no global state.

A draw depends on nothing but its key, so a resumed run draws what the uninterrupted one would have drawn, and N
processes with one draw each draw what one process with N draws per step would.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from starzoo.config import Beta, Constant, StarConfig, Uniform

__all__ = ["Draw", "SourceSampler"]

_SOURCES, _TIMES, _NOISE = 0, 1, 2  # independent streams of one seed


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
        draws: Draws per step, over all processes.
    """

    config: StarConfig
    sources: int
    draws: int = 1

    def draw(self, step: int, place: int = 0) -> Draw:
        """One of the draws of a step.

        Args:
            step: The optimiser step, from 0.
            place: Which of its draws, from 0.

        Returns:
            The draw.
        """
        number = step * self.draws + place
        return Draw(self._source(number), self._time(number))

    def noise(self, step: int, place: int = 0) -> int:
        """The seed of whatever else is random in a draw's forward passes, such as dropout.

        Args:
            step: The optimiser step, from 0.
            place: Which of its draws, from 0.

        Returns:
            The seed.
        """
        return int(self._rng(_NOISE, step * self.draws + place).integers(2**63))

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
