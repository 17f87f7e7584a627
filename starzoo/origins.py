"""The models and images that a star was made with, found again: pinned, and checked to be the same.

What the star.json of a stranger says is data, not configuration: it may name images that everybody has, and no folder
of this machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from starzoo.architecture import Architecture
from starzoo.config import DataConfig, validate, with_changes
from starzoo.data import ImageData, Split, load_data, load_unlabelled
from starzoo.data.opening import say
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.hub.names import is_repo
from starzoo.hub.offline import is_offline
from starzoo.places import RunPlaces, is_folder
from starzoo.progress import Progress, silent
from starzoo.sources import Source, load_sources, named_classes
from starzoo.star.manifest import ModelRecord, StarManifest

__all__ = ["load_data_for", "load_images", "load_models", "load_named_images", "load_other_images"]

_NO_PATH = re.compile(r"[^/\\.][^/\\]*|refs/[a-z]+/[\w-]+")  # the name of a configuration, a commit, a branch
_MOST = 16_000_000_000  # bytes of images that a stranger's star may have in memory at once


def load_models(
    records: Sequence[ModelRecord], refs: Sequence[str | Path], *, progress: Progress = silent
) -> list[Source]:
    """Load a star's own models under their own names, and make sure that they are still the same files.

    Args:
        records: The models as the star's manifest names them.
        refs: Where they are, one reference per model: `starzoo.places.find_models` knows.
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
    if not places.dataset:
        _refuse_greed(manifest)
        if "dataset" not in (changes or {}):
            _check_named(manifest, manifest.config.data, option="--dataset")
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


def load_named_images(
    manifest: StarManifest, places: RunPlaces, config: DataConfig | None, given: object
) -> Split | None:
    """Open the test images of the other data set of a star.

    Args:
        manifest: What stands in its star.json.
        places: Where its files lie on this machine, as far as that is known.
        config: The data set, or None.
        given: What the user says of it: its name, some values, or nothing.

    Returns:
        Its test split, or None.
    """
    by_user = isinstance(given, str) or (isinstance(given, Mapping) and "dataset" in given)
    if config and not by_user and not places.ood:
        _check_named(manifest, config, option="--ood")
    return load_other_images(config, manifest.architecture)


def load_other_images(config: DataConfig | None, architecture: Architecture) -> Split | None:
    """Open the test images of another data set, which needs no labels, through the preprocessing of a star.

    Args:
        config: The data set, or None.
        architecture: The star's architecture.

    Returns:
        Its test split, or None.
    """
    return load_unlabelled(config, architecture.preprocessing) if config else None


def _check_named(manifest: StarManifest, data: DataConfig, *, option: str) -> None:
    """Make sure that a star not fitted here names no folder, and say what the Hub is asked for with the token."""
    if data.dataset == "digits":
        return
    what = f"{manifest.name}: its star.json names the images {data.dataset!r}"
    if not is_repo(data.dataset):
        raise UntrustedInputError(
            f"{what}, a folder of another machine",
            hint=f"name the images here: {option} DATASET",
            subject=data.dataset,
        )
    if any(text and not _NO_PATH.fullmatch(text) for text in (data.name, data.revision)):
        raise UntrustedInputError(
            f"{what} with the configuration {data.name!r} and the revision {data.revision!r}, which cannot be",
            hint=f"name the images yourself: {option} DATASET",
            subject=data.dataset,
        )
    if is_folder(data):
        raise UsageError(
            f"{what} of the Hub, and a folder here is called so too",
            hint=f"give {option} {data.dataset} if the folder is meant, or another current folder",
            subject=data.dataset,
        )
    if not is_offline() and _has_token():
        say(f"{what}; the Hub is asked for them with your token")


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _refuse_greed(manifest: StarManifest) -> None:
    """Make sure that the settings of a star which was not fitted on this machine do not fill it."""
    align, evaluate = manifest.config.align, manifest.config.evaluate
    size = 4 * math.prod(manifest.architecture.preprocessing.input_size)
    for name, images in (("align.images", align.images), ("evaluate.batch_size", evaluate.batch_size)):
        if images * size > _MOST:
            raise UntrustedInputError(
                f"{manifest.name}: its star.json has {name} = {images:,}, which take {images * size / 1e9:.0f} GB",
                hint="ask its author for a star with less",
                subject=manifest.name,
            )
