"""The table of rules: how each operator relates the axes of its arguments and results.

A rule is a function whose parameters name, in any order, what it needs:

* arguments of the operator's schema, by their names there; tensors arrive as `Axes`, and an argument that an overload
  does not have is None;
* `x`: the first tensor, which schemas call `self` or `input`;
* `tensors`: all tensor arguments;
* `out`: the shape of the result, or a list of shapes where there are several;
* `layout`: the strides and the storage offset that the first tensor had before the call;
* `trace`: the running trace, to note a contraction.

It returns the `Axes` of the result, or a sequence of them, or None where it does not apply. An item of a sequence may
be a function that is called when that result is read, so that an unread result ties no axes. A rule is sound if, when
every argument is permuted as its terms say, the result is permuted as its terms say. A rule may refine, unify or pin
the terms of its arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Protocol, TypeVar

import torch
from torch._ops import OpOverload

from starzoo.symmetry.axes import Axes
from starzoo.symmetry.terms import Term

__all__ = ["Contractions", "LazyAxes", "Result", "Rule", "Shape", "apply_rule", "find_rule", "rule", "shapes_of"]

Shape = tuple[int, ...]
LazyAxes = Callable[[], Axes]
Result = Axes | Sequence[Axes | LazyAxes] | None
Rule = Callable[..., Result]
R = TypeVar("R", bound=Rule)

_RULES: dict[str, Rule] = {}


class Contractions(Protocol):
    """The part of the trace that rules use."""

    def contract(self, *terms: Term) -> None:
        """Record the batch and contracted axes of one contraction: they are read together, position by position."""


def rule(*names: str) -> Callable[[R], R]:
    """Register a rule.

    Args:
        *names: Operators without overload: ATen's as ``"mm"``, others as ``"library::operator"``. A name that this
            version of torch does not have is harmless.

    Returns:
        A decorator that registers the function and returns it.
    """

    def register(function: R) -> R:
        for name in names:
            _RULES[name if "::" in name else f"aten::{name}"] = function
        return function

    return register


def find_rule(operator: OpOverload) -> Rule | None:
    """The rule of an operator; every operator that torch tags as pointwise has one.

    Args:
        operator: The operator.

    Returns:
        The rule, or None.
    """
    if torch.Tag.pointwise in operator.tags:
        return _RULES["aten::clone"]
    name = operator._schema.name
    if any(argument.is_out for argument in operator._schema.arguments):
        return None  # a rule describes the result, not an existing tensor that is written into, and its views
    return _RULES.get(name)


def apply_rule(function: Rule, arguments: Mapping[str, Any], **context: Any) -> list[Axes | LazyAxes]:
    """Call a rule with the arguments that it names.

    Args:
        function: The rule.
        arguments: The operator's arguments by name, tensors as `Axes`.
        **context: `out`, `layout` and `trace`.

    Returns:
        The axes of each result; empty where the rule does not apply.
    """
    first = arguments.get("self", arguments.get("input"))
    available = {"x": first, **arguments, **context, "tensors": list(_tensors(arguments.values()))}
    result = function(**{name: available.get(name) for name in _parameters(function)})
    return [result] if isinstance(result, Axes) else list(result or ())


@cache
def _parameters(function: Rule) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def shapes_of(out: Shape | Sequence[Shape]) -> list[Shape]:
    """The shapes of the results, also where there is only one.

    Args:
        out: The `out` argument of a rule.

    Returns:
        A list of shapes.
    """
    return [out] if isinstance(out, tuple) else list(out)


def _tensors(values: Any) -> Iterator[Axes]:
    for value in values:
        if isinstance(value, Axes):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
