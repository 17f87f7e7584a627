"""Align a model to a star and measure the path between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from starzoo.align.align import align
from starzoo.align.probe import Probe
from starzoo.config import Method
from starzoo.errors import UsageError
from starzoo.evaluate.cached_evaluation import CachedEvaluation
from starzoo.evaluate.evaluate import measure_path
from starzoo.evaluate.model_pool import EvaluatedModels, PathSpec
from starzoo.evaluate.results import PathCurve
from starzoo.models.sources import Source, load_sources
from starzoo.models.timm_folder import WEIGHTS_FILE
from starzoo.progress import Progress, no_progress
from starzoo.star.inputs import match_to_star
from starzoo.star.star import Star
from starzoo.symmetry import Permutation

if TYPE_CHECKING:
    from starzoo.data.task import ImageTask

__all__ = ["JoinResult", "join"]


@dataclass(frozen=True, kw_only=True)
class JoinResult:
    """A model on its way into a star domain.

    Attributes:
        name: The model's name.
        method: How it was matched to the star.
        distance_before: Euclidean distance to the star over the tensors that can be permuted.
        distance_after: The same after alignment.
        paths: The path from the star (t = 0) to the model (t = 1), one for each split, with its four measures.
        published_paths: The paths from the star to its own held-outs, as its star.json has them: none where those were
            measured on other images.
        state: The aligned state dict.
        permutation: What aligned it.
    """

    name: str
    method: Method
    distance_before: float
    distance_after: float
    paths: tuple[PathCurve, ...]
    published_paths: tuple[PathCurve, ...]
    state: Mapping[str, Tensor]
    permutation: Permutation


def join(star: Star, ref: str | Path, data: ImageTask, *, progress: Progress = no_progress) -> JoinResult:
    """Align a new model to a star as its own held-outs were, and measure the path between the two."""
    manifest, architecture, config = star.manifest, star.manifest.architecture, star.manifest.config
    reserved, image_size = [source.name for source in manifest.sources], config.data.image_size
    [model] = load_sources([ref], reserved_names=reserved, image_size=image_size, progress=progress)
    _check_unseen(star, model, str(ref))
    [model] = match_to_star(star, [model], data, progress=progress)
    probe = Probe(architecture.build(), *data.train.labeled_images(limit=config.align.images, seed=config.align.seed))
    states = star.state, [model.state]
    [aligned] = align(architecture.spec, *states, config.align, probe=probe, meter=probe, progress=progress)
    progress("measuring the path", 0, 1)
    models = EvaluatedModels(
        architecture=architecture,
        star=star.state,
        holdouts={model.name: model.state},
        permutations={model.name: aligned.permutation},
    )
    path = PathSpec("star-heldout", "star", model.name)
    paths = measure_path(CachedEvaluation(models, data, config), path)
    progress("measuring the path", 1, 1)
    evaluation = manifest.evaluation
    same_data = evaluation and not evaluation.data and data.fingerprint == manifest.data_fingerprint
    published_paths = evaluation.paths if evaluation and same_data else ()
    return JoinResult(
        name=model.name,
        method=config.align.method,
        distance_before=aligned.distance_before,
        distance_after=aligned.distance_after,
        paths=paths,
        published_paths=tuple(path for path in published_paths if path.kind == "star-heldout"),
        state=aligned.state,
        permutation=aligned.permutation,
    )


def _check_unseen(star: Star, model: Source, ref: str) -> None:
    """Make sure that a model is neither the star nor one of its sources."""
    hashes = {f"its source {source.name}": source.files for source in star.manifest.sources}
    for name, files in {"the star itself": star.manifest.files, **hashes}.items():
        if files.get(WEIGHTS_FILE) == model.record.files[WEIGHTS_FILE]:
            raise UsageError(
                ref,
                f"is {name}, so that the path between the two would prove nothing",
                hint="give a model that the star never saw",
            )
