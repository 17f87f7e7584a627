"""The models and images that a star was made with, found again: pinned, and checked to be the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from starzoo.config import DataConfig, validate, with_changes
from starzoo.data.split import Split
from starzoo.data.task import ImageData, load_data, load_unlabelled
from starzoo.errors import UntrustedInputError
from starzoo.models.architecture import Architecture
from starzoo.models.sources import Source, load_sources, named_classes
from starzoo.progress import Progress, silent
from starzoo.star.manifest import ModelRecord, StarManifest
from starzoo.star.run.local_paths import RunPlaces

__all__ = ["load_data_for", "load_images", "load_models", "load_other_images"]


def load_models(
    records: Sequence[ModelRecord], refs: Sequence[str | Path], *, progress: Progress = silent
) -> list[Source]:
    """Load a star's own models under their own names, and make sure that they are still the same files.

    Args:
        records: The models as the star's manifest names them.
        refs: Where they are, one reference per model: `starzoo.star.run.local_paths.find_models` knows.
        progress: Told after every model.

    Returns:
        The models in the order of `records`, each in its own class order.

    Raises:
        UntrustedInputError: The files of a model are others than those that the manifest names.
    """
    models = load_sources(refs, progress=progress)
    for model, record in zip(models, records, strict=True):
        if dict(model.provenance.files) != record.files:
            raise UntrustedInputError(
                f"{record.name}: its files are not those that the star was made with",
                hint="bring the old files back, or fit the star again",
                subject=record.name,
            )
    return [
        replace(model if model.architecture.label_names else named_classes(model, record.label_names), name=record.name)
        for model, record in zip(models, records, strict=True)
    ]


def load_images(manifest: StarManifest, places: RunPlaces, changes: Mapping[str, Any] | None = None) -> ImageData:
    """Open the data set of a star, or another one for the same classes.

    Args:
        manifest: What stands in its star.json.
        places: Where its files lie on this machine, as far as that is known.
        changes: Values of `DataConfig` that differ from those that it was fitted with.

    Returns:
        The task.
    """
    known = {"dataset": places.dataset} if places.dataset else {}
    config = validate(DataConfig, with_changes({**manifest.config.data.model_dump(), **known}, changes or {}))
    return load_data_for(manifest.architecture, config, manifest.architecture.label_names)


def load_data_for(architecture: Architecture, config: DataConfig, names: Sequence[str] | None) -> ImageData:
    """Open a data set for models of one architecture.

    Args:
        architecture: Their architecture.
        config: The data set.
        names: The class names into whose order the labels are brought; None where none are known.

    Returns:
        The task.
    """
    return load_data(config, architecture.preprocessing, class_names=names, num_classes=architecture.num_classes)


def load_other_images(config: DataConfig | None, architecture: Architecture) -> Split | None:
    """Open the test images of another data set, which needs no labels, through the preprocessing of a star.

    Args:
        config: The data set, or None.
        architecture: The star's architecture.

    Returns:
        Its test split, or None.
    """
    return load_unlabelled(config, architecture.preprocessing) if config else None
