"""Report the symmetries of a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from starzoo.errors import UsageError
from starzoo.hub.listing import list_files
from starzoo.hub.ref import ModelRef
from starzoo.models.architecture import Architecture
from starzoo.models.pull import architecture_of
from starzoo.models.spec_cache import cached_spec
from starzoo.models.timm_folder import read_architecture
from starzoo.symmetry import PermutationSpec
from starzoo.symmetry import verify as prove
from starzoo.symmetry.terms import Concat, Leaf, Pinned, Product, Term, groups_of, pinned_parts

__all__ = ["Explanation", "SymmetryReport", "explain_axis", "inspect_model"]

PIN_REASONS = {  # what the short reasons of the rules mean
    "block sizes do not fit": "it meets another axis whose blocks are of other sizes",
    "blocks do not fit the parts": "it is cut into blocks that do not fit the axes that it is put together from",
    "constant": "it meets numbers that no training changes and that differ along it",
    "cropped": "part of it is cut off",
    "cut inside a block": "a cut goes through its blocks",
    "empty": "it has no position",
    "gate": "it counts the gates of a recurrent layer",
    "index": "its numbers are indices into another tensor",
    "indexed": "it is read by position",
    "input": "it is, or meets, an axis of the input, whose positions mean something",
    "kernel": "the positions of a kernel are neighbors in space",
    "layer and direction": "it counts the layers and directions of a recurrent layer",
    "never read": "the network never reads the tensor",
    "order matters": "an operator goes along it in order",
    "output": "it is, or meets, an axis of the output, whose positions mean something",
    "pixel shuffle": "its positions become positions in space, or the other way round",
    "position is returned": "an operator returns positions along it",
    "roll": "it is turned, or reversed, by position",
    "space": "it is an axis of space, which a convolution, pooling or resizing mixes by distance",
    "split across the boundary of a block": "a view splits it where its blocks do not end",
    "stack": "it counts tensors that were stacked",
    "strided slice": "every so many positions of it are read",
    "written into a constant": "something is written into a tensor that was constant along it",
}


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """How one axis of one tensor may be permuted, and why not more.

    Attributes:
        tensor: The tensor's name.
        axis: The axis.
        size: Its length.
        structure: The axis in one line: a letter for each of `groups`, in their order, `×` between the factors of a
            row-major product, `|` between concatenated parts, and lengths in parentheses.
        groups: For every group that permutes it: (name, size, outer group or None, the other axes that it permutes, for
            example ``"conv1.weight:0"``).
        pinned: For every pinned part: (size, short reason, its meaning).
    """

    tensor: str
    axis: int
    size: int
    structure: str
    groups: tuple[tuple[str, int, str | None, tuple[str, ...]], ...]
    pinned: tuple[tuple[int, str, str], ...]


@dataclass(frozen=True, kw_only=True)
class SymmetryReport:
    """The symmetries of one architecture.

    Attributes:
        architecture: The timm name.
        parameters: Number of parameters.
        groups: Number of permutation groups.
        wreath_groups: How many of them act blockwise within another.
        coverage: Share of parameters in tensors that a group permutes.
        unsupported_operators: Operators without a rule.
        trace_seconds: Seconds that inferring the symmetries took, when it was done.
        pinned: Reasons, with the number of axis positions that each pins.
        table: (group, size, outer group or None, number of tensor axes) for every group.
        verify: The fields of `symmetry.Verification`, and `passed`; None unless asked for.
        why: The explanation of one axis; None unless asked for.
    """

    architecture: str
    parameters: int
    groups: int
    wreath_groups: int
    coverage: float
    unsupported_operators: tuple[str, ...]
    trace_seconds: float
    pinned: dict[str, int]
    table: tuple[tuple[str, int, str | None, int], ...]
    verify: dict[str, Any] | None = None
    why: Explanation | None = None


def inspect_model(
    ref_or_arch: str,
    *,
    model_args: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    pin_output: bool = True,
    verify: bool = False,
    why: str | None = None,
) -> SymmetryReport:
    """Find the permutation symmetries of a model or of an architecture.

    Args:
        ref_or_arch: A reference, or the name of a timm architecture.
        model_args: Arguments of a named architecture.
        image_size: Pixels per side of a named architecture; timm's default otherwise.
        pin_output: Whether the output must stay as it is. An embedding may be permuted too.
        verify: Whether to verify the symmetries by random permutations.
        why: A tensor and an axis to explain, for example ``"conv1.weight:0"``.

    Returns:
        The report.
    """
    architecture = _find_architecture(ref_or_arch, model_args, image_size)
    spec = cached_spec(architecture, pin_output=pin_output)
    model = architecture.build_uninitialized()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    pinned: Counter[str] = Counter()
    for terms in spec.axes.values():
        for term in terms:
            for part in pinned_parts(term):
                if part.reason:  # an axis of length 1 has none
                    pinned[part.reason] += part.size
    explanation = explain_axis(spec, why, subject=architecture.name) if why else None
    proof = prove(model, architecture.example_input(), spec) if verify else None
    return SymmetryReport(
        architecture=architecture.name,
        parameters=sum(sizes.values()),
        groups=len(spec.groups),
        wreath_groups=spec.wreath_groups,
        coverage=spec.coverage(sizes),
        unsupported_operators=spec.unsupported_operators,
        trace_seconds=spec.trace_seconds,
        pinned=dict(pinned),
        table=tuple((g.name, g.size, g.within, len(spec.occurrences[g.name])) for g in spec.groups.values()),
        verify={**asdict(proof), "passed": proof.passed} if proof else None,
        why=explanation,
    )


def explain_axis(spec: PermutationSpec, tensor_axis: str, *, subject: str = "the network") -> Explanation:
    """Explain how one axis may be permuted, and why not more."""
    tensor, _, axis = tensor_axis.rpartition(":")
    if not axis.isdecimal() or tensor not in spec.axes or int(axis) >= len(spec.axes[tensor]):
        hint = _how_to_name_an_axis(spec, tensor if tensor in spec.axes else tensor_axis)
        raise UsageError(subject, f"no axis {tensor_axis!r}", hint=hint)
    term = spec.axes[tensor][int(axis)]
    groups = [spec.groups[name] for name in dict.fromkeys(groups_of(term))]
    axes = {group.name: [f"{name}:{number}" for name, number in spec.occurrences[group.name]] for group in groups}
    return Explanation(
        tensor=tensor,
        axis=int(axis),
        size=term.size,
        structure=_structure(term, dict(zip((group.name for group in groups), ascii_uppercase, strict=False))),
        groups=tuple(
            (group.name, group.size, group.within, tuple(other for other in axes[group.name] if other != tensor_axis))
            for group in groups
        ),
        pinned=tuple(
            (part.size, part.reason, "; ".join(PIN_REASONS.get(reason, reason) for reason in part.reason.split(", ")))
            for part in pinned_parts(term)
            if part.size > 1
        ),
    )


def _how_to_name_an_axis(spec: PermutationSpec, tensor: str) -> str:
    if axes := spec.axes.get(tensor):
        return f"{tensor} has the axes 0 to {len(axes) - 1}: write {tensor}:0"
    similar = [name for name in spec.axes if tensor.rpartition(".")[2] in name][:3] or list(spec.axes)[:3]
    return f"write TENSOR:AXIS, for example {', '.join(f'{name}:0' for name in similar)}"


def _structure(term: Term, letters: Mapping[str, str]) -> str:
    match term:
        case Leaf(group, size):
            return f"{letters.get(group, group)} ({size})"
        case Pinned(size):
            return f"in place ({size})"
        case Product(factors):
            written = [(factor, _structure(factor, letters)) for factor in factors]
            return " × ".join(f"[{inner}]" if isinstance(factor, Concat) else inner for factor, inner in written)
        case Concat(parts):
            return " | ".join(_structure(part, letters) for part in parts)
    raise AssertionError(term)


def _find_architecture(ref_or_arch: str, model_args: Mapping[str, Any] | None, image_size: int | None) -> Architecture:
    if "/" in ref_or_arch or ref_or_arch.startswith(("hf-hub:", "~", ".")) or Path(ref_or_arch).is_dir():
        if model_args or image_size:
            raise UsageError(
                ref_or_arch,
                "a trained model has its own arguments and input size",
                hint="give --model-args and --image-size with the name of an architecture only",
            )
        ref = ModelRef.parse(ref_or_arch)
        return architecture_of(list_files(ref)) if ref.folder is None else read_architecture(ref.folder)
    return Architecture.from_registry(ref_or_arch, model_args=model_args, image_size=image_size)
