"""The linear assignment problem behind one function: which row of one model stands for which row of the other."""

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
    # Taking out each row's and column's best changes no optimum and leaves the solver about half of its work: the
    # outer products of one-dimensional tensors make every entry of a row large, and the solver slow.
    cost = gain.max(axis=1, keepdims=True) - gain
    cost -= cost.min(axis=0, keepdims=True)
    _, columns = linear_sum_assignment(cost)
    return np.asarray(columns, dtype=np.int64)
