"""Run a network on meta tensors and derive terms for the axes of its tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from starzoo.errors import IncompatibleError
from starzoo.symmetry.axes import Axes
from starzoo.symmetry.rules import apply_rule, find_rule
from starzoo.symmetry.terms import Constant, Pinned, Term, has_constant

__all__ = ["Trace", "constant_axes", "copy_module", "trace_module"]

# Raised by a forward pass on an unsuitable input, or where it needs values that meta tensors do not have.
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_TRANSPOSITIONS = frozenset({"aten::t", "aten::transpose", "aten::permute", "aten::detach"})


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the axes of all tensors while a network runs.

    Attributes:
        axes: The axes of every live tensor; a tensor that is not in it is a constant.
        spaces: The terms of positions that are read together: those of every contraction, and all axes of every result.
            A weight is permuted along each of its axes separately, so each of its axes is a space of its own.
        read: The ids of the tensors that some operator read.
        unsupported: Operators without a rule, in the order met.
        observed: The axes of each module's output at its first call, by the module's name.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = WeakTensorKeyDictionary()
        self._zeros = WeakTensorKeyDictionary()  # results of aten::zeros that nothing was written to
        self._sharing: dict[int, list[TensorWeakRef]] = {}  # the tensors of each storage
        self.axes = WeakTensorKeyDictionary()
        self._lazy = WeakTensorKeyDictionary()  # results whose axes are decided when they are read
        self.spaces: list[list[Term]] = []
        self.read: set[int] = set()
        self.unsupported: dict[str, None] = {}
        self.observed: dict[str, Axes] = {}

    def label(self, tensor: Tensor, axes: Axes, *, weight: bool = False) -> None:
        """Record the axes of a tensor, and whether it is a weight, or a transposed one."""
        self.axes[tensor] = axes
        self._sharing.setdefault(_storage(tensor), []).append(TensorWeakRef(tensor))
        if weight:
            self._weights[tensor] = True
            self.spaces += ([term] for term in axes.joint_terms())
        else:
            self.spaces.append(axes.joint_terms())

    def contract(self, *terms: Term) -> None:
        """Record the batch and contracted axes of one contraction."""
        self.spaces.append(list(terms))

    def axes_of(self, tensor: Tensor) -> Axes:
        """The axes of a tensor; one that the trace does not know was made before it, and is a constant."""
        if tensor in self._lazy:
            decide = self._lazy[tensor]
            del self._lazy[tensor]
            self.label(tensor, decide())
        return self.axes[tensor] if tensor in self.axes else constant_axes(tensor)

    def observe(self, module: nn.Module) -> None:
        """Record the axes of every innermost module's output, as far as they are decided when it returns."""

        def record(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
            def hook(part: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
                # An output that was not read yet stays undecided: recording must not change the symmetries.
                if isinstance(output, Tensor) and output in self.axes and all(output is not x for x in inputs):
                    self.observed.setdefault(name, self.axes[output])

            return hook

        for name, part in module.named_modules():
            if not any(True for _ in part.children()):
                part.register_forward_hook(record(name))

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operator and follow what it does to the axes."""
        arguments = _arguments(func, args, kwargs or {})
        tensors = _shallow_tensors(arguments.values())
        axes_of_arguments = {name: _with_axes(argument, self.axes_of) for name, argument in arguments.items()}
        layout = (tensors[0].stride(), tensors[0].storage_offset()) if tensors else None
        written = [(tensor, self.axes_of(tensor)) for tensor in _written(func, arguments)]
        result = func(*args, **(kwargs or {}))
        returned = self._follow(func, arguments, axes_of_arguments, result, layout)
        for tensor, before in written:
            self._record_write(tensor, before, is_returned=any(tensor is one for one in returned))
        return result

    def lstm(self, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Follow an LSTM as one operator.

        Args:
            *args: The arguments of `aten::lstm`, without projections.

        Returns:
            The output, and the last hidden and cell states.
        """
        func = torch.ops.aten.lstm.input
        arguments = _arguments(func, args, {})
        x, hx = arguments["input"], arguments["hx"]
        axes_of_arguments = {name: _with_axes(argument, self.axes_of) for name, argument in arguments.items()}
        # States that begin as zeros, and were not written to, agree with whatever the hidden units do.
        axes_of_arguments["hx"] = [
            Axes.of(map(Constant, state.shape)) if state in self._zeros else self.axes_of(state) for state in hx
        ]
        directions = 2 if arguments["bidirectional"] else 1
        result = (x.new_empty((*x.shape[:2], directions * hx[0].shape[2])), *(torch.empty_like(state) for state in hx))
        self._follow(func, arguments, axes_of_arguments, result, None)
        return result

    def _follow(
        self,
        func: OpOverload,
        arguments: Mapping[str, Any],
        axes_of_arguments: Mapping[str, Any],
        result: Any,
        layout: Any,
    ) -> list[Tensor]:
        """Label the results of an operator by its rule; return these tensors."""
        tensors = _shallow_tensors(arguments.values())
        self.read.update(map(id, tensors))
        returned = _shallow_tensors([result])
        shapes = [tuple(tensor.shape) for tensor in returned]
        out = shapes[0] if isinstance(result, Tensor) else shapes
        rule = find_rule(func)
        results = apply_rule(rule, axes_of_arguments, out=out, layout=layout, trace=self) if rule else []
        fits = len(results) == len(shapes) and all(
            not isinstance(axes, Axes) or axes.shape == shape for axes, shape in zip(results, shapes, strict=True)
        )
        if not fits or (rule is None and tensors):
            results = list(self._pin_all(func, axes_of_arguments, shapes))
        weight = func._schema.name in _TRANSPOSITIONS and tensors[0] in self._weights
        for tensor, axes in zip(returned, results, strict=True):
            if isinstance(axes, Axes):
                self.label(tensor, axes, weight=weight)
            else:
                self._lazy[tensor] = axes
            if func._schema.name == "aten::zeros":
                self._zeros[tensor] = True
        return returned

    def _pin_all(self, func: OpOverload, axes_of_arguments: Any, shapes: Sequence[tuple[int, ...]]) -> list[Axes]:
        """Pin every axis where there is no rule, or one that does not fit: that is sound, only less complete."""
        name = func._schema.name
        reason = f"no rule for {name}"
        arguments = [axes for axes in tree_leaves(axes_of_arguments, is_leaf=_is_axes) if _is_axes(axes)]
        for axes in arguments:
            axes.pin(reason)
        if arguments:
            self.unsupported[name] = None
        return [Axes.pinned(shape, reason) for shape in shapes]

    def _record_write(self, tensor: Tensor, before: Axes, *, is_returned: bool) -> None:
        """Pin the views of a tensor that was written into, if one of them was constant along an axis before."""
        live = (reference() for reference in self._sharing.get(_storage(tensor), ()))
        views = list({id(view): view for view in live if view is not None}.values())
        self._sharing[_storage(tensor)] = [TensorWeakRef(view) for view in views]  # without those that are gone
        for zeros in [view for view in views if view in self._zeros]:
            del self._zeros[zeros]
        others = [self.axes[view] for view in views if view is not tensor]  # a view may have lost the constant axis
        constant = any(has_constant(term) for axes in (before, *others) for term in axes.joint_terms())
        if constant and (len(views) > 1 or not is_returned):
            for view in views:
                self.axes[view].pin("written into a constant")
                self.label(view, Axes.pinned(tuple(view.shape), "written into a constant"))


class _Recurrence(TorchFunctionMode):
    """Passes recurrent layers to the trace whole, before PyTorch decomposes them."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # Packed sequences have a tensor as second argument; with projections, the two states differ in size.
        if func is torch.lstm and isinstance(args[1], list | tuple) and args[1][0].shape == args[1][1].shape:
            return self._trace.lstm(*args)
        return func(*args, **(kwargs or {}))


def trace_module(
    module: nn.Module, example_input: Tensor, *, pin_output: bool
) -> tuple[Trace, dict[str, Tensor], list[Axes]]:
    """Run a copy of a network without weights, and follow the axes of all its tensors.

    Args:
        module: The network; it is not changed.
        example_input: Its input, shape (batch, ...); only the first item's shape and type matter.
        pin_output: Whether the output's axes must stay as they are.

    Returns:
        The trace, the copy's state dict, whose tensors the trace knows, and the axes of everything it returned.

    Raises:
        IncompatibleError: The forward pass needs values that a trace without weights does not have, or fails.
    """
    twin, originals = copy_module(module, _without_values)
    trace = Trace()
    trace.observe(twin)
    state = {name: value for name, value in twin.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    for tensor in state.values():
        if tensor not in trace.axes:
            trace.label(tensor, Axes.fresh(tensor.shape), weight=True)
    for tensor, original in originals:
        if tensor not in trace.axes:
            trace.label(tensor, constant_axes(original))
    first = example_input[:1].detach().to("meta")
    trace.label(first, Axes.pinned(tuple(first.shape), "input"))
    returned = [trace.axes_of(output) for output in _run(twin, first, trace)]
    if pin_output:
        for axes in returned:
            axes.pin("output")
    return trace, state, returned


def _run(network: nn.Module, example: Tensor, trace: Trace) -> list[Tensor]:
    """The outputs of a network on the meta device, followed by a trace."""
    with _without_fast_path(), torch.no_grad(), torch.device("meta"), trace, _Recurrence(trace):
        try:
            return _tensors(network(example))
        except _FAILURES as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            needs_values = "meta" in reason.lower()
            raise IncompatibleError(
                type(network).__name__,
                f"cannot follow the forward pass on shape {tuple(example.shape)}: {reason}",
                hint="use a network that does not branch on values and reads only its own tensors"
                if needs_values
                else "give an input that suits the network",
            ) from error


def constant_axes(tensor: Tensor) -> Axes:
    """The axes of a tensor that no training changes: constant where all slices along an axis are equal, else pinned.

    Args:
        tensor: The tensor. On the meta device its values are unknown, and its axes are pinned.

    Returns:
        Its axes.
    """

    def is_constant(axis: int) -> bool:
        return tensor.device.type != "meta" and bool((tensor == tensor.narrow(axis, 0, 1)).all())

    return Axes.of(
        Constant(size) if size > 1 and is_constant(axis) else Pinned(size, "constant")
        for axis, size in enumerate(tensor.shape)
    )


def copy_module(
    module: nn.Module, convert: Callable[[Tensor], Tensor]
) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Copy a network in evaluation mode, each tensor converted; tensors that are shared stay shared.

    Args:
        module: The network; it is not changed.
        convert: Makes the copy of one tensor.

    Returns:
        The copy, and its tensors with their originals.
    """
    memo: dict[int, Any] = {}
    pairs: list[tuple[Tensor, Tensor]] = []
    for tensor in _tensors([vars(part) for part in module.modules()]):
        if id(tensor) not in memo:
            with torch.no_grad():
                copied = convert(tensor)
            memo[id(tensor)] = nn.Parameter(copied, requires_grad=False) if isinstance(tensor, nn.Parameter) else copied
            pairs.append((memo[id(tensor)], tensor))
    return copy.deepcopy(module, memo).train().eval(), pairs  # entering eval mode drops what timm caches


def _without_values(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Turn off fused multi-head attention, one operator that would hide its contractions."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _arguments(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """An operator's arguments by name, with defaults."""
    signature = _signature(func)
    return {**signature.defaults, **dict(zip(signature.names, args, strict=False)), **kwargs}


def _written(func: OpOverload, arguments: Mapping[str, Any]) -> list[Tensor]:
    return _shallow_tensors(arguments[name] for name in _signature(func).written)


class _Signature(NamedTuple):
    names: list[str]
    defaults: dict[str, Any]
    written: list[str]


@cache
def _signature(func: OpOverload) -> _Signature:
    schema = func._schema.arguments
    return _Signature(
        [argument.name for argument in schema],
        {argument.name: argument.default_value for argument in schema if argument.has_default_value()},
        [argument.name for argument in schema if argument.alias_info is not None and argument.alias_info.is_write],
    )


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _shallow_tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among values and in lists among them: schemas nest tensors no deeper."""
    flat = (item for value in values for item in (value if isinstance(value, list | tuple) else (value,)))
    return [value for value in flat if isinstance(value, Tensor)]


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _with_axes(argument: Any, axes_of: Callable[[Tensor], Axes]) -> Any:
    """An argument in which each tensor is replaced by its axes."""
    if isinstance(argument, Tensor):
        return axes_of(argument)
    if isinstance(argument, list | tuple):
        return [axes_of(item) if isinstance(item, Tensor) else item for item in argument]
    return argument


def _is_axes(value: Any) -> bool:
    return isinstance(value, Axes)
