"""Infer a permutation specification from a trace: find the groups, name them and convert the terms."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from starzoo.symmetry.spec import PermutationGroup, PermutationSpec
from starzoo.symmetry.terms import (
    Concat,
    Constant,
    Free,
    Leaf,
    Pinned,
    Product,
    Term,
    atoms,
    concat,
    product,
    resolve,
)
from starzoo.symmetry.trace import Trace, trace_module
from starzoo.symmetry.wreath import find_wreaths, rewrite, split_inner

__all__ = ["infer", "infer_activations"]


def infer(module: nn.Module, example_input: Tensor, *, pin_output: bool = True) -> PermutationSpec:
    """Find the permutation symmetries of a network by tracing it.

    Args:
        module: The network; it is not changed. Its weights are not read, but constant buffers should hold their values:
            on the meta device their axes are pinned.
        example_input: Its input, shape (batch, ...); only the shape and type of the first item matter.
        pin_output: Whether the output must stay as it is; otherwise it may be permuted too, as for embeddings.

    Returns:
        The groups, and a term for every axis of every tensor of the state dict.

    Raises:
        IncompatibleError: The forward pass depends on values, or fails.
    """
    spec, _ = _infer(module, example_input, pin_output=pin_output)
    return spec


def infer_activations(module: nn.Module, example_input: Tensor) -> PermutationSpec:
    """Find how the symmetries of a network permute the outputs of its modules.

    Args:
        module: The network, as for `infer`.
        example_input: Its input, shape (batch, ...).

    Returns:
        The groups that `infer` finds. The tensors are not weights but the outputs of the innermost modules at their
        first call, by the module's name, for a batch of one.

    Raises:
        IncompatibleError: The forward pass depends on values, or fails.
    """
    spec, activations = _infer(module, example_input, pin_output=True)
    return replace(spec, axes=activations)


def _infer(
    module: nn.Module, example_input: Tensor, *, pin_output: bool
) -> tuple[PermutationSpec, dict[str, tuple[Term, ...]]]:
    started = time.perf_counter()
    trace, state, returned = trace_module(module, example_input, pin_output=pin_output)
    weights = {name: _terms(trace, tensor) for name, tensor in state.items()}
    outputs = [list(axes) for axes in returned]
    activations = {name: list(axes) for name, axes in trace.observed.items()}
    if split := split_inner([*weights.values(), *outputs], trace.spaces):
        weights, activations = (
            {name: [rewrite(term, split) for term in terms] for name, terms in tensors.items()}
            for tensors in (weights, activations)
        )
        outputs = [[rewrite(term, split) for term in terms] for terms in outputs]
    names = _name_groups(weights)
    within = find_wreaths([*weights.values(), *outputs], trace.spaces)
    outer_first = dict.fromkeys(variable for leaf in names for variable in (within.get(leaf, leaf), leaf))

    def convert(terms: Sequence[Term]) -> tuple[Term, ...]:
        return tuple(_to_spec_term(term, names) for term in terms)

    spec = PermutationSpec(
        groups={
            names[leaf]: PermutationGroup(names[leaf], leaf.size, names[within[leaf]] if leaf in within else None)
            for leaf in outer_first
        },
        axes={name: convert(terms) for name, terms in weights.items()},
        outputs=tuple(map(convert, outputs)),
        unsupported_operators=tuple(trace.unsupported),
        trace_seconds=time.perf_counter() - started,
    )
    return spec, {name: convert(terms) for name, terms in activations.items()}


def _terms(trace: Trace, tensor: Tensor) -> list[Term]:
    if id(tensor) not in trace.read:
        return [Pinned(size, "never read") for size in tensor.shape]
    return [resolve(term) for term in trace.axes_of(tensor)]


def _name_groups(axes: Mapping[str, Sequence[Term]]) -> dict[Free, str]:
    """Name each group after the first axis in which it occurs, with a number where that axis has several new ones."""
    names: dict[Free, str] = {}
    for tensor, terms in axes.items():
        for axis, term in enumerate(terms):
            new = [atom for atom in dict.fromkeys(atoms(term)) if isinstance(atom, Free) and atom not in names]
            for position, leaf in enumerate(new):
                names[leaf] = f"{tensor}:{axis}.{position}" if position else f"{tensor}:{axis}"
    return names


def _to_spec_term(term: Term, names: Mapping[Free, str]) -> Term:
    term = resolve(term)
    match term:
        case Free(size) if term in names:
            return Leaf(names[term], size)
        case Free(size) | Constant(size):  # only an output has a variable without a name
            return Pinned(size, "constant")
        case Product(factors):
            return product(_merge_pinned([_to_spec_term(factor, names) for factor in factors], operator.mul))
        case Concat(parts):
            return concat(_merge_pinned([_to_spec_term(part, names) for part in parts], operator.add))
    return term


def _merge_pinned(terms: Sequence[Term], combine: Callable[[int, int], int]) -> list[Term]:
    """Merge neighbors that are pinned into one pinned axis."""
    merged: list[Term] = []
    for term in terms:
        if merged and isinstance(term, Pinned) and isinstance(last := merged[-1], Pinned):
            reasons = dict.fromkeys(filter(None, [*last.reason.split(", "), term.reason]))
            merged[-1] = Pinned(combine(last.size, term.size), ", ".join(reasons))
        else:
            merged.append(term)
    return merged
