"""Linear assignment: which row of one model matches which row of the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

__all__ = ["solve_assignment"]


def solve_assignment(gain: NDArray[np.floating]) -> NDArray[np.int64]:
    """Find the permutation q with the greatest total gain Σ_i gain[i, q[i]].

    Args:
        gain: What it is worth to put column j at place i, shape (n, n), finite.

    Returns:
        The index vector q, shape (n,).
    """
    # A price on every column changes no optimum. With prices at which rows hardly compete for columns, the solver finds
    # the best column of most rows free: it takes an eighth of the time on the gains of a ResNet-50, prices included.
    # Few rows are placed before prices are found.
    _, columns = linear_sum_assignment(_prices(gain) - gain if len(gain) > _FEW else -gain)
    return np.asarray(columns, dtype=np.int64)


def _prices(gain: NDArray[np.floating]) -> NDArray[np.float64]:
    """Prices of the columns, shape (n,), at which about one row wants each: a few steps of Sinkhorn's algorithm."""
    level = gain.mean(axis=0)
    excess = gain - level
    excess -= excess.max(axis=1, keepdims=True)
    temperature = max(_TEMPERATURE * -float(excess.mean()), _TINY)
    excess /= temperature
    wants = np.exp(excess.astype(np.float32, copy=False))
    discount = np.ones(len(gain), np.float32)
    for _ in range(_STEPS):
        share = 1 / (wants @ discount + _TINY)
        discount = 1 / (share @ wants + _TINY)
    prices: NDArray[np.float64] = level.astype(np.float64) - temperature * np.log(discount)
    return prices


_TEMPERATURE = 0.03  # of the mean distance to a row's best: at lower ones the steps do less, higher ones decide less
_STEPS = 10
_FEW = 128  # where the solver alone takes as long as the prices
_TINY = 1e-20
