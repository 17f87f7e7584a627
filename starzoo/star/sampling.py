"""The source and the t that each step draws, keyed by (seed, step, draw).

A draw depends on nothing but its key, so a resumed run draws what the uninterrupted one would have drawn, and N
processes with one draw each draw what one process with N draws per step would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from starzoo.config import Beta, Constant, StarConfig, Uniform

__all__ = ["Draw", "SourceSampler"]

_SOURCES, _TIMES, _NOISE, _TERMS = 0, 1, 2, 3  # independent streams of one seed


@dataclass(frozen=True)
class Draw:
    """What one mini-batch is evaluated at.

    Attributes:
        source: Number of the source n.
        t: Place on the path, 0 at the star and 1 at the source.
        own: Whether the loss's term for the star itself was drawn, and t is 0.
    """

    source: int
    t: float
    own: bool = False


@dataclass(frozen=True)
class SourceSampler:
    """Draws the (source, t) of every step (paper, algorithm 1).

    Attributes:
        config: Says how t is distributed, how sources are drawn, and with μ how often the star itself is.
        sources: The number N of sources.
        draws: Draws per step, over all processes.
    """

    config: StarConfig
    sources: int
    draws: int = 1

    def draw(self, step: int, place: int = 0) -> Draw:
        """One of the draws of a step.

        Args:
            step: The optimizer step, from 0.
            place: Which of its draws, from 0.

        Returns:
            The draw.
        """
        number = step * self.draws + place
        own = self._is_own(number)
        return Draw(self._source(number), 0.0 if own else self._time(number), own)

    def noise(self, step: int, place: int = 0) -> int:
        """The seed of whatever else is random in a draw's forward passes, such as dropout.

        Args:
            step: The optimizer step, from 0.
            place: Which of its draws, from 0.

        Returns:
            The seed.
        """
        return int(self._rng(_NOISE, step * self.draws + place).integers(2**63))

    def _source(self, number: int) -> int:
        if self.config.source_order == "independent":
            return int(self._rng(_SOURCES, number).integers(self.sources))
        # A deck deals every source once before any comes again: the mean over sources with less variance.
        deck, card = divmod(number, self.sources)
        return int(self._rng(_SOURCES, deck).permutation(self.sources)[card])

    def _is_own(self, number: int) -> bool:
        share = self.config.mu / (1 + self.config.mu)
        if self.config.source_order == "independent":
            return bool(self._rng(_TERMS, number).random() < share)
        # At even distances from a random start: the same mean with less variance.
        start = self._rng(_TERMS, 0).random()
        return math.floor((number + 1) * share + start) > math.floor(number * share + start)

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
