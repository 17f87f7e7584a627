"""The operators of one forward pass and how they feed each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Graph", "Node", "Value"]


@dataclass(eq=False, slots=True)
class Node:
    """One call of an operator, or a leaf: a parameter, buffer, input or constant.

    Attributes:
        operator: The operator's name; empty for a leaf.
        shapes: The shape of each result.
        arguments: The operator's arguments by name, without tensors.
        inputs: The tensors among the arguments, by name; those of a list are called ``tensors.0``, ``tensors.1``, …
        consumers: The calls that read a result, once per time that it is read.
        name: What the state dict calls a leaf that has just one name there; empty for all else.
    """

    operator: str = ""
    shapes: Sequence[tuple[int, ...]] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Value] = field(default_factory=dict)
    consumers: list[Node] = field(default_factory=list)
    name: str = ""

    @property
    def value(self) -> Value:
        """The first result, which of most operators is the only one."""
        return Value(self, 0)


class Value(NamedTuple):
    """One tensor of a forward pass: which result of which call."""

    node: Node
    place: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.node.shapes[self.place]


class Graph:
    """The calls of a forward pass while it runs.

    Attributes:
        nodes: All calls, in their order.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._values = WeakTensorKeyDictionary()

    def name_leaf(self, tensor: Tensor, name: str) -> None:
        """Note a tensor of the state dict; one that has several names keeps none."""
        if tensor in self._values:
            self._values[tensor].node.name = ""
        else:
            self._values[tensor] = Node(shapes=[tuple(tensor.shape)], name=name).value

    def record(self, operator: str, arguments: Mapping[str, Any], results: Sequence[Tensor]) -> None:
        """Note a call.

        Args:
            operator: The operator's name.
            arguments: Its arguments by name, tensors included.
            results: The tensors that it returned.
        """
        inputs: dict[str, Value] = {}
        others: dict[str, Any] = {}
        for name, argument in arguments.items():
            if isinstance(argument, Tensor):
                inputs[name] = self._value_of(argument)
            elif isinstance(argument, list | tuple) and any(isinstance(each, Tensor) for each in argument):
                tensors = [(place, each) for place, each in enumerate(argument) if each is not None]
                inputs |= {f"{name}.{place}": self._value_of(each) for place, each in tensors}
            else:
                others[name] = argument
        call = Node(operator, [tuple(tensor.shape) for tensor in results], others, inputs)
        for value in inputs.values():
            value.node.consumers.append(call)
        for place, tensor in enumerate(results):
            self._values[tensor] = Value(call, place)
        self.nodes.append(call)

    def made_by(self, tensor: Tensor) -> str:
        """The operator that a tensor is the result of; empty for a leaf."""
        return self._value_of(tensor).node.operator

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """After a write that reached them by another name, nothing is known of how these tensors come about."""
        for tensor in tensors:
            constant = Node(shapes=[tuple(tensor.shape)])
            self._value_of(tensor).node.consumers.append(constant)
            self._values[tensor] = constant.value

    def _value_of(self, tensor: Tensor) -> Value:
        # What is not known was made outside of the forward pass: a constant, a leaf without a name.
        if tensor not in self._values:
            self._values[tensor] = Node(shapes=[tuple(tensor.shape)]).value
        value: Value = self._values[tensor]
        return value
