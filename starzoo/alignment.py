"""Alignment of models that lie in folders or on the Hub: what `starzoo align` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starzoo.align.align import align
from starzoo.config import AlignConfig
from starzoo.folder import save_folder, save_tensors
from starzoo.places import refuse_overwriting
from starzoo.progress import Progress, silent
from starzoo.sources import check_compatible, load_sources
from starzoo.specs import infer_architecture
from starzoo.star.star import PERMUTATIONS

__all__ = ["AlignmentReport", "align_models"]


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


def align_models(
    fixed: str, permutees: Sequence[str], out: Path, config: AlignConfig, *, progress: Progress = silent
) -> list[AlignmentReport]:
    """Permute models towards a fixed one and write them as folders that plain timm loads.

    Args:
        fixed: Reference of the model that stays.
        permutees: References of the models that are permuted.
        out: Gets one folder per permutee, with permutations.safetensors beside the weights.
        config: The method of alignment.
        progress: Told after every permutee.

    Returns:
        One report per permutee.
    """
    anchor, *others = load_sources([fixed, *permutees], progress=progress)
    check_compatible([anchor, *others])
    folders = [out / other.name for other in others]
    for folder in folders:
        refuse_overwriting(folder, [fixed, *permutees], unless=PERMUTATIONS)
    spec = infer_architecture(anchor.architecture)
    reports = []
    for done, (other, folder) in enumerate(zip(others, folders, strict=True), start=1):
        [aligned] = align(spec, anchor.state, [other.state], config)
        save_folder(folder, other.architecture, aligned.state)
        save_tensors(folder / PERMUTATIONS, aligned.permutation.tensors())
        reports.append(
            AlignmentReport(
                name=other.name,
                folder=folder,
                distance_before=aligned.distance_before,
                distance_after=aligned.distance_after,
                sweeps=aligned.sweeps,
            )
        )
        progress("aligning", done, len(others))
    return reports
