"""Linear assignment: which row of one model matches which row of the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

__all__ = ["solve_assignment"]

_TEMPERATURE = 0.03  # of the mean distance to a row's best: at lower ones the steps do less, higher ones decide less
_STEPS = 10
_MIN_PRICED_SIZE = 128  # below it the solver alone takes no longer than the prices
_TINY = 1e-20


def solve_assignment(gain: NDArray[np.floating]) -> NDArray[np.int64]:
    """Find the permutation q with the greatest total gain Σ_i gain[i, q[i]].

    Args:
        gain: The value of putting column j at position i, shape (n, n), finite.

    Returns:
        The index vector q, shape (n,).
    """
    # A price on every column changes no optimum. With prices at which rows hardly compete for columns, the solver finds
    # the best column of most rows free: it takes an eighth of the time on the gains of a ResNet-50, prices included.
    _, columns = linear_sum_assignment(_prices(gain) - gain if len(gain) > _MIN_PRICED_SIZE else -gain)
    return np.asarray(columns, dtype=np.int64)


def _prices(gain: NDArray[np.floating]) -> NDArray[np.float64]:
    """Prices of the columns, shape (n,), at which about one row wants each: some steps of Sinkhorn (Cuturi 2013)."""
    level = gain.mean(axis=0)
    excess = gain - level
    excess -= excess.max(axis=1, keepdims=True)
    temperature = max(_TEMPERATURE * -float(excess.mean()), _TINY)
    excess /= temperature
    demand = np.exp(excess.astype(np.float32, copy=False))
    discount = np.ones(len(gain), np.float32)
    for _ in range(_STEPS):
        share = 1 / (demand @ discount + _TINY)
        discount = 1 / (share @ demand + _TINY)
    prices: NDArray[np.float64] = level.astype(np.float64) - temperature * np.log(discount)
    return prices
