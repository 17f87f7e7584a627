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
from starzoo.evaluate.chance_check import find_class_orders
from starzoo.evaluate.evaluate import measure_path
from starzoo.evaluate.results import PathCurve
from starzoo.models.class_order import named_classes, reorder_classes
from starzoo.models.compatibility import check_compatible
from starzoo.models.record import ModelRecord
from starzoo.models.sources import Source, load_sources
from starzoo.models.timm_folder import WEIGHTS_FILE
from starzoo.progress import Progress, no_progress
from starzoo.star.manifest import StarManifest
from starzoo.symmetry import Permutation

if TYPE_CHECKING:
    from starzoo.data.task import ImageTask

__all__ = ["JoinResult", "join", "star_as_source"]


@dataclass(frozen=True, kw_only=True)
class JoinResult:
    """A model on its way into a star domain.

    Attributes:
        name: The model's name.
        method: How it was matched to the star.
        distance_before: Euclidean distance to the star over the tensors that can be permuted.
        distance_after: The same after alignment.
        paths: The path from the star (t = 0) to the model (t = 1), one for each split, with its four measures.
        known: The paths from the star to its own held-outs, as its star.json has them: none where those were measured
            on other images.
        state: The aligned state dict.
        permutation: What aligned it.
    """

    name: str
    method: Method
    distance_before: float
    distance_after: float
    paths: tuple[PathCurve, ...]
    known: tuple[PathCurve, ...]
    state: Mapping[str, Tensor]
    permutation: Permutation


def join(
    manifest: StarManifest,
    star: Mapping[str, Tensor],
    ref: str | Path,
    data: ImageTask,
    *,
    progress: Progress = no_progress,
) -> JoinResult:
    """Align a new model to a star as its own held-outs were, and measure the path between the two."""
    architecture = manifest.architecture
    [model] = load_sources([ref], reserved_names=[source.name for source in manifest.sources], progress=progress)
    known = {f"its source {source.name}": source.files for source in manifest.sources}
    for name, files in {"the star itself": manifest.files, **known}.items():
        if files.get(WEIGHTS_FILE) == model.record.files[WEIGHTS_FILE]:
            raise UsageError(
                str(ref),
                f"is {name}, so that the path between the two would prove nothing",
                hint="give a model that the star never saw",
            )
    check_compatible([star_as_source(manifest, star), model])
    if not model.architecture.label_names:
        orders = find_class_orders(architecture, {model.name: model.state}, data, progress=progress)
        model = named_classes(model, orders[model.name])
    [model] = reorder_classes([model], architecture.label_names)
    how = manifest.config.align
    probe = Probe(architecture.build(), *data.train.labeled_images(limit=how.images, seed=how.seed))
    [aligned] = align(architecture.spec, star, [model.state], how, probe=probe, meter=probe, progress=progress)
    ends = {"star": star, model.name: aligned.state}
    progress("measuring the path", 0, 1)
    paths = measure_path(architecture, "star-heldout", ends, data, manifest.config.evaluate)
    progress("measuring the path", 1, 1)
    published, is_same = manifest.evaluation, data.fingerprint == manifest.data_fingerprint
    return JoinResult(
        name=model.name,
        method=how.method,
        distance_before=aligned.distance_before,
        distance_after=aligned.distance_after,
        paths=paths,
        known=tuple(
            path
            for path in (published.paths if published and is_same and not published.data else ())
            if path.kind == "star-heldout"
        ),
        state=aligned.state,
        permutation=aligned.permutation,
    )


def star_as_source(manifest: StarManifest, star: Mapping[str, Tensor]) -> Source:
    """The star as one more model, whose architecture is compared with that of others."""
    record = ModelRecord(name="the star", files={WEIGHTS_FILE: ""})  # its weights may be those of a source
    return Source(record, manifest.architecture, star)
