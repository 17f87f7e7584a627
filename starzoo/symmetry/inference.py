"""From a trace to a specification: which axes became groups, what they are called, and how a term is written down."""

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
        module: The network; it is not changed. Its weights are not looked at, but constant buffers should hold their
            values: on the meta device they stay in place.
        example_input: What it is called with, shape (batch, ...); only the shape and type of the first item matter.
        pin_output: Whether the output must stay as it is; otherwise it may be permuted too, as for embeddings.

    Returns:
        The groups, and a term for every axis of every tensor of the state dict.

    Raises:
        IncompatibleError: The forward pass depends on data, or fails.
    """
    found, _ = _infer(module, example_input, pin_output=pin_output)
    return found


def infer_activations(module: nn.Module, example_input: Tensor) -> PermutationSpec:
    """Find how the symmetries of a network move what its modules return.

    Args:
        module: The network, as for `infer`.
        example_input: What it is called with, shape (batch, ...).

    Returns:
        The groups that `infer` finds; its tensors are no weights, but what every innermost module returns at its first
        call, by the module's name, for a batch of one.

    Raises:
        IncompatibleError: The forward pass depends on data, or fails.
    """
    found, activations = _infer(module, example_input, pin_output=True)
    return replace(found, axes=activations)


def _infer(
    module: nn.Module, example_input: Tensor, *, pin_output: bool
) -> tuple[PermutationSpec, dict[str, tuple[Term, ...]]]:
    started = time.perf_counter()
    trace, state, returned = trace_module(module, example_input, pin_output=pin_output)
    terms = {name: _terms(trace, tensor) for name, tensor in state.items()}
    outputs = [list(each) for each in returned]
    observed = {name: list(each) for name, each in trace.observed.items()}
    if split := split_inner([*terms.values(), *outputs], trace.spaces):
        terms, observed = (
            {name: [rewrite(term, split) for term in each] for name, each in some.items()} for some in (terms, observed)
        )
        outputs = [[rewrite(term, split) for term in each] for each in outputs]
    names = _name_groups(terms)
    within = find_wreaths([*terms.values(), *outputs], trace.spaces)
    ordered = dict.fromkeys(each for leaf in names for each in (within.get(leaf, leaf), leaf))  # outer groups first
    groups = {
        names[leaf]: PermutationGroup(names[leaf], leaf.size, names[within[leaf]] if leaf in within else None)
        for leaf in ordered
    }
    axes, activations = (
        {name: tuple(_to_spec_term(term, names) for term in each) for name, each in some.items()}
        for some in (terms, observed)
    )
    found = PermutationSpec(
        groups=groups,
        axes=axes,
        outputs=tuple(tuple(_to_spec_term(term, names) for term in each) for each in outputs),
        unsupported_operators=tuple(trace.unsupported),
        trace_seconds=time.perf_counter() - started,
    )
    return found, activations


def _terms(trace: Trace, tensor: Tensor) -> list[Term]:
    if id(tensor) not in trace.read:
        return [Pinned(size, "never read") for size in tensor.shape]
    return [resolve(term) for term in trace.axes_of(tensor)]


def _name_groups(axes: Mapping[str, Sequence[Term]]) -> dict[Free, str]:
    """Call each group after the first axis in which it occurs; an axis that brings several numbers the later ones."""
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
    """Neighbors that stay in place are one axis that stays in place."""
    merged: list[Term] = []
    for term in terms:
        if merged and isinstance(term, Pinned) and isinstance(last := merged[-1], Pinned):
            reasons = dict.fromkeys(filter(None, [*last.reason.split(", "), term.reason]))
            merged[-1] = Pinned(combine(last.size, term.size), ", ".join(reasons))
        else:
            merged.append(term)
    return merged
