"""Each command as one function: rooms put together, from names to a finished folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starzoo.config import AlignConfig, DataConfig, RunConfig
from starzoo.progress import Progress, silent

if TYPE_CHECKING:
    from starzoo.evaluate.measures import Evaluation
    from starzoo.star.manifest import StarManifest

__all__ = ["AlignmentReport", "Inspection", "StarReport", "align_models", "evaluate_star", "fit_star", "inspect_model", "quickstart"]


@dataclass(frozen=True, kw_only=True)
class StarReport:
    """What `fit_star` and `quickstart` made.

    Attributes:
        folder: The star's folder.
        manifest: What stands in its star.json, the evaluation included.
        pushed: URL of the commit on the Hub, or None.
    """

    folder: Path
    manifest: StarManifest
    pushed: str | None = None


@dataclass(frozen=True, kw_only=True)
class AlignmentReport:
    """One permutee after alignment.

    Attributes:
        name: The permutee.
        folder: Its aligned weights, in timm's folder format, with permutations.safetensors.
        distance_before: Euclidean distance to the fixed model over the tensors that can be permuted.
        distance_after: The same after alignment.
        sweeps: Passes over the permutation groups.
    """

    name: str
    folder: Path
    distance_before: float
    distance_after: float
    sweeps: float


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
        verify: relative_error, weights_changed, negative_control_passed, negative_control_tried; None unless asked for.
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
