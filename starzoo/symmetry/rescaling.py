"""Rows that may be rescaled: the scale symmetry of channels that a batch norm normalises.

Multiply the weights that make one channel by a number a > 0, the running mean of that channel too, and let the running
variance v become a²(v + ε) − ε: the network computes the same. Two networks may therefore be compared with the rows of
such weights brought to one scale. A layer norm or group norm divides by a statistic that several channels share, so
that their rows can only be rescaled together; they are not listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from starzoo.symmetry.graph import Node, Value
from starzoo.symmetry.rules.normalise import BATCH_NORMS
from starzoo.symmetry.spec import RescalableRows

__all__ = ["find_rescalable_rows", "rescale"]


def find_rescalable_rows(nodes: Iterable[Node]) -> tuple[RescalableRows, ...]:
    """Find the weights whose result goes into a batch norm and nowhere else.

    Args:
        nodes: The results of all operators of a forward pass.

    Returns:
        One entry per batch norm that normalises the result of a convolution or linear layer.
    """
    found = []
    for node in nodes:
        if node.operator.removeprefix("aten::") in BATCH_NORMS:
            rows = () if node.arguments.get("training") else _rows(_producer(_main(node)), node.shapes[0])
            mean, variance = (_own_name(node.inputs.get(key)) for key in ("running_mean", "running_var"))
            if rows and mean and variance:
                found.append(RescalableRows(rows, mean, variance, float(node.arguments["eps"])))
    return tuple(found)


def rescale(
    state: Mapping[str, Tensor], rescalable: Iterable[RescalableRows], generator: torch.Generator
) -> dict[str, Tensor]:
    """Rescale all rows that may be rescaled by random factors from 1 to 2.

    Args:
        state: A state dict of the network.
        rescalable: The rows.
        generator: The source of randomness.

    Returns:
        A state dict of the same function.
    """
    scaled = dict(state)
    for each in rescalable:
        variance = state[each.variance]
        factor = 1 + torch.rand(variance.shape, generator=generator, dtype=variance.dtype)
        for name in (*each.rows, each.mean):
            scaled[name] = state[name] * factor.reshape(-1, *[1] * (state[name].ndim - 1))
        scaled[each.variance] = factor**2 * (variance + each.epsilon) - each.epsilon
    return scaled


def _producer(value: Value) -> Node | None:
    """The call that computed a tensor, behind views that keep the channels last, if nothing else reads it."""
    while value.node.operator in {"aten::view", "aten::_unsafe_view", "aten::reshape"}:
        before = _main(value.node)
        if len(value.node.consumers) > 1 or before.shape[-1] != value.shape[-1]:
            return None
        value = before
    return value.node if len(value.node.consumers) == 1 else None


def _rows(producer: Node | None, normalised: tuple[int, ...]) -> tuple[str, ...]:
    """The weight and bias whose slices along axis 0 make one channel each, if nothing else reads them."""
    if producer is not None and producer.operator == "aten::convolution" and producer.shapes[0] != normalised:
        return ()  # a view made something else of the channels
    if producer is not None and producer.operator != "aten::convolution" and len(normalised) != 2:
        return ()  # a linear layer's channels come last, and a batch norm's second
    match producer:
        case Node("aten::convolution", arguments={"transposed": False}, inputs=inputs):
            weight, bias = inputs["weight"], inputs.get("bias")
        case Node("aten::addmm", inputs={"self": bias, "mat2": Value(Node("aten::t", inputs={"self": weight}), _)}):
            pass
        case Node("aten::mm", inputs={"mat2": Value(Node("aten::t", inputs={"self": weight}), _)}):
            bias = None
        case _:
            return ()
    leaves = [weight] if bias is None else [weight, bias]
    names = tuple(map(_own_name, leaves))
    return names if all(names) and all(leaf.shape[0] == leaves[0].shape[0] for leaf in leaves) else ()


def _main(node: Node) -> Value:
    return node.inputs["input"] if "input" in node.inputs else node.inputs["self"]


def _own_name(value: Value | None) -> str:
    """The name of a tensor of the state dict that is read in one place; empty otherwise."""
    return value.node.name if value is not None and len(value.node.consumers) == 1 else ""
