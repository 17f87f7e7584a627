"""Align models from folders or the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from starzoo.align.align import align
from starzoo.align.probe import Probe
from starzoo.config import AlignConfig, DataConfig, Method
from starzoo.errors import UsageError
from starzoo.models.class_order import common_label_names, reorder_classes
from starzoo.models.compatibility import check_compatible
from starzoo.models.sources import load_sources
from starzoo.models.timm_folder import save_tensors, save_timm_folder
from starzoo.progress import Progress, no_progress
from starzoo.star.inputs import load_data_for
from starzoo.star.manifest import MANIFEST
from starzoo.star.run.folder import check_not_overwriting
from starzoo.star.star import PERMUTATIONS
from starzoo.symmetry import Permutation
from starzoo.workflows.measure import match_to_data
from starzoo.workflows.refs import expand_refs

__all__ = ["AlignmentReport", "align_models"]


@dataclass(frozen=True, kw_only=True)
class AlignmentReport:
    """One permutee after alignment.

    Attributes:
        name: The permutee.
        folder: Its aligned weights, in timm's folder format, with permutations.safetensors.
        method: How it was matched.
        distance_before: Euclidean distance to the fixed model over the tensors that can be permuted.
        distance_after: The same after alignment.
        midpoint_loss_before: Loss at the midpoint to the fixed model, on training images, in nats; None without data.
        midpoint_loss_after: The same after alignment.
        sweeps: Passes over the permutation groups.
        connected: Whether the two are connected without any permutation, and none was applied.
    """

    name: str
    folder: Path
    method: Method
    distance_before: float
    distance_after: float
    midpoint_loss_before: float | None
    midpoint_loss_after: float | None
    sweeps: float
    connected: bool = False


def align_models(
    fixed: str,
    permutees: Sequence[str],
    out: Path,
    config: AlignConfig,
    *,
    data: DataConfig | None = None,
    image_size: int | None = None,
    progress: Progress = no_progress,
) -> list[AlignmentReport]:
    """Permute models toward a fixed one and write them as folders that plain timm loads.

    Their outputs are brought into the class order of the fixed model, by name.

    Args:
        fixed: Reference of the model that stays.
        permutees: References of the models that are permuted.
        out: Gets one folder per permutee, with permutations.safetensors beside the weights, whose metadata say how the
            model was aligned.
        config: How they are aligned; without a method and without data, by balanced weights.
        data: The task, for the methods that run the models, and to measure the loss at the midpoints between them.
        image_size: Height and width in pixels at which all models are used, where no data say it.
        progress: Told after every permutee.

    Returns:
        One report per permutee.

    Raises:
        UsageError: The method needs images, and no data are given, or a folder of `out` holds a star.
    """
    if not data and "method" not in config.model_fields_set:  # the default method needs images
        config = config.model_copy(update={"method": "balanced-weights"})
    permutees = expand_refs(permutees)
    models = load_sources([fixed, *permutees], image_size=data.image_size if data else image_size, progress=progress)
    check_compatible(models)
    folders = [out / model.name for model in models[1:]]
    for folder in folders:
        _check_writable(folder, [fixed, *permutees])
    probe = None
    if data:
        models, images = match_to_data(models, partial(load_data_for, models[0].architecture, data), progress)
        sample = images.train.labeled_images(limit=config.images, seed=config.seed)
        probe = Probe(models[0].architecture.build(), *sample)
    else:
        models = reorder_classes(models, common_label_names(models))
    target, *others = models
    spec, states = target.architecture.spec, [other.state for other in others]
    aligned = align(spec, target.state, states, config, probe=probe, meter=probe, progress=progress)
    metadata = {"fixed": target.name, "align": config.model_dump_json()}
    identity, reports = Permutation.identity(spec), []
    for model, folder, result in zip(others, folders, aligned, strict=True):
        save_tensors(
            folder / PERMUTATIONS, result.permutation.to_tensors(), metadata
        )  # first: it marks the folder as ours
        save_timm_folder(folder, model.architecture, result.state)
        reports.append(
            AlignmentReport(
                name=model.name,
                folder=folder,
                method=config.method,
                distance_before=result.distance_before,
                distance_after=result.distance_after,
                midpoint_loss_before=result.midpoint_loss_before,
                midpoint_loss_after=result.midpoint_loss_after,
                sweeps=result.sweeps,
                connected=probe is not None
                and not result.permutation.count_moved(identity)
                and probe.are_connected(target.state, model.state),
            )
        )
    return reports


def _check_writable(folder: Path, inputs: Sequence[str]) -> None:
    """Make sure that a folder holds neither an input nor a star, which has permutations too."""
    check_not_overwriting(folder, inputs, unless=[PERMUTATIONS])
    if (folder / MANIFEST).exists():
        raise UsageError(str(folder), "holds a star, which would be overwritten", hint="choose another --out")
