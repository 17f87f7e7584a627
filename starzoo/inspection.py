"""What a person wants to know of a network's symmetries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from starzoo.architecture import Architecture
from starzoo.errors import UsageError
from starzoo.sources import load_source
from starzoo.symmetry import PermutationSpec, infer
from starzoo.symmetry import verify as prove
from starzoo.symmetry.spec import pinned_parts

__all__ = ["Inspection", "infer_architecture", "inspect_model"]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The symmetries of one architecture.

    Attributes:
        architecture: The timm name.
        parameters: Number of parameters.
        groups: Number of permutation groups.
        wreath_groups: How many of them act blockwise within another.
        coverage: Share of parameters in tensors that a group permutes.
        unsupported_operators: Operators without a rule.
        trace_seconds: Seconds that finding the symmetries took.
        pinned: Reasons, with the number of axis positions that each keeps in place.
        table: (group, size, outer group or None, number of tensor axes) for every group.
        verify: The fields of `symmetry.Verification`, and `passed`; None unless asked for.
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


def inspect_model(
    ref_or_arch: str,
    *,
    model_args: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    verify: bool = False,
) -> Inspection:
    """Find the permutation symmetries of a model or of an architecture.

    Args:
        ref_or_arch: A reference, or a timm name (what has no slash and is no folder).
        model_args: Arguments of the architecture, where a name is given.
        image_size: Pixels per side, where a name is given; timm's default otherwise.
        verify: Whether to prove the symmetries by permuting at random.

    Returns:
        The inspection.
    """
    architecture = _find_architecture(ref_or_arch, model_args, image_size)
    model = architecture.build()
    example = architecture.example_input()
    spec = infer(model, example)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    pinned: Counter[str] = Counter()
    for terms in spec.axes.values():
        for term in terms:
            for part in pinned_parts(term):
                if part.reason:  # an axis of length 1 has none
                    pinned[part.reason] += part.size
    proof = prove(model, example, spec) if verify else None
    return Inspection(
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
    )


def infer_architecture(architecture: Architecture) -> PermutationSpec:
    """The permutation symmetries of an architecture.

    Args:
        architecture: The architecture.

    Returns:
        Its specification.
    """
    return infer(architecture.build(), architecture.example_input())


def _find_architecture(ref_or_arch: str, model_args: Mapping[str, Any] | None, image_size: int | None) -> Architecture:
    if "/" in ref_or_arch or ref_or_arch.startswith(("hf-hub:", "~", ".")) or Path(ref_or_arch).is_dir():
        if model_args or image_size:
            raise UsageError(
                f"{ref_or_arch}: a trained model has its own arguments and input size",
                hint="give --model-args and --image-size with the name of an architecture only",
                subject=ref_or_arch,
            )
        return load_source(ref_or_arch).architecture
    return Architecture.from_registry(ref_or_arch, model_args=model_args, image_size=image_size)
