"""Recurrent layers, each as one operator: step by step they are thousands of small ones with the same result."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from starzoo.symmetry.axes import Axes
from starzoo.symmetry.rules.registry import Contractions, LazyAxes, rule
from starzoo.symmetry.terms import Term, concat, factorize, pin, unify

GATES = 4  # input, forget, cell, output


@rule("lstm")
def lstm(
    x: Axes,
    hx: Sequence[Axes],
    params: Sequence[Axes],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    trace: Contractions,
) -> list[Axes | LazyAxes]:
    """Hidden units move with their four gates, independently in the two directions. Time is pinned."""
    batch, time = (x[0], x[1]) if batch_first else (x[1], x[0])
    batch = reduce(unify, (state[1] for state in hx), batch)
    time = pin(time, "order matters")
    trace.contract(batch)
    per_cell = 4 if has_biases else 2
    cells = [params[start : start + per_cell] for start in range(0, len(params), per_cell)]
    directions = len(cells) // num_layers
    below, hidden = x[2], [_hidden_units(cell) for cell in cells]
    for layer in range(num_layers):
        for cell in cells[layer * directions : (layer + 1) * directions]:
            below = unify(below, cell[0][1])
            trace.contract(below)
        below = concat(hidden[layer * directions : (layer + 1) * directions])
    for state in hx:
        pin(state[0], "layer and direction")
        for units in hidden:
            unify(state[2], units)
    for units in hidden:
        trace.contract(units)

    def last_states() -> Axes:  # one tensor holds those of all layers and directions, so they move alike
        return Axes.of([hx[0][0], batch, reduce(unify, hidden)])

    return [Axes.of([batch, time, below] if batch_first else [time, batch, below]), last_states, last_states]


def _hidden_units(cell: Sequence[Axes]) -> Term:
    """The hidden axis of the weights (gates · hidden, input), (gates · hidden, hidden) and biases (gates · hidden)."""
    hidden = cell[1][1]
    for weight in cell:
        gates, units = factorize(weight[0], (GATES, hidden.size))
        pin(gates, "gate")
        hidden = unify(hidden, units)
    return hidden
