"""Reload the models and images of a star, and check that they are the same.

What the star.json of a stranger says is data, not configuration: it may name images that everybody has, and no folder
of this machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starzoo.config import DataConfig, merge_section, validate
from starzoo.data.hub_datasets import warn_once
from starzoo.data.split import Split
from starzoo.data.task import ImageTask, load_data, load_unlabeled
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.evaluate.chance_check import name_classes
from starzoo.hub.names import is_repo
from starzoo.hub.offline import is_offline
from starzoo.models.architecture import Architecture
from starzoo.models.class_order import named_classes, reorder_classes
from starzoo.models.compatibility import check_compatible
from starzoo.models.record import ModelRecord
from starzoo.models.sources import Source, load_sources
from starzoo.models.timm_folder import WEIGHTS_FILE
from starzoo.progress import Progress, no_progress
from starzoo.star.manifest import StarManifest
from starzoo.star.run.local_paths import is_local_dataset, resolve_path
from starzoo.star.star import Star

__all__ = [
    "load_data_for",
    "load_ood_data",
    "match_to_star",
    "reload_data",
    "reload_models",
    "reload_ood_data",
    "star_as_source",
]

_NO_PATH = re.compile(r"[^/\\.][^/\\]*|refs/[a-z]+/[\w-]+")  # the name of a configuration, a commit, a branch
_MAX_BYTES = 16_000_000_000  # of images that a stranger's star may have in memory at once


def reload_models(
    star: Star, records: Sequence[ModelRecord], refs: Sequence[str | Path], *, progress: Progress = no_progress
) -> list[Source]:
    """Load a star's own models under their own names, and make sure that they are still the same files."""
    models = load_sources(refs, image_size=star.manifest.config.data.image_size, progress=progress)
    for model, record in zip(models, records, strict=True):
        if model.record.files != record.files:
            raise UntrustedInputError(
                record.name,
                "its files are not those that the star was made with",
                hint="bring the old files back, or fit the star again",
            )
    return [
        (model if model.architecture.label_names else named_classes(model, record.label_names)).with_record(
            name=record.name
        )
        for model, record in zip(models, records, strict=True)
    ]


def match_to_star(
    star: Star, models: Sequence[Source], data: ImageTask | None = None, *, progress: Progress = no_progress
) -> list[Source]:
    """Check that models are compatible with a star, and bring them into its class order.

    With images, models without label names must be better than chance on them in one of the orders of their classes.
    """
    check_compatible([star_as_source(star), *models])
    if data:
        models = name_classes(models, data, progress=progress)
    return reorder_classes(models, star.manifest.architecture.label_names)


def star_as_source(star: Star) -> Source:
    """Return the star as one more model, whose architecture is compared with that of others."""
    record = ModelRecord(name="the star", files={WEIGHTS_FILE: ""})  # its weights may be those of a source
    return Source(record, star.manifest.architecture, star.state)


def reload_data(star: Star, changes: Mapping[str, Any] | None = None) -> ImageTask:
    """Open the data set of a star, or with `changes` another one for the same classes."""
    manifest, changes = star.manifest, changes or {}
    if not star.local_paths.dataset:
        _check_memory(manifest)
        if "dataset" not in changes:
            _check_named(manifest, manifest.config.data, option="--dataset")
    config = resolve_path(validate(DataConfig, merge_section(manifest.config.data.model_dump(), changes)))
    return load_data_for(manifest.architecture, config, manifest.architecture.label_names)


def load_data_for(architecture: Architecture, config: DataConfig, names: Sequence[str] | None) -> ImageTask:
    """Open a data set for models of one architecture."""
    return load_data(config, architecture.preprocessing, class_names=names, num_classes=architecture.num_classes)


def reload_ood_data(star: Star, configs: Sequence[DataConfig], override: object) -> list[Split]:
    """Open the out-of-distribution images of a star; `override` is what the user says about them."""
    by_user = isinstance(override, str | list | tuple) or (isinstance(override, Mapping) and "dataset" in override)
    if not by_user and not star.local_paths.ood:
        for config in configs:
            _check_named(star.manifest, config, option="--ood")
    return load_ood_data(configs, star.manifest.architecture)


def load_ood_data(configs: Sequence[DataConfig], architecture: Architecture) -> list[Split]:
    """Open the test images of other data sets, which need no labels, through the preprocessing of a star."""
    return [load_unlabeled(config, architecture.preprocessing) for config in configs]


def _check_named(manifest: StarManifest, data: DataConfig, *, option: str) -> None:
    """Make sure that a star not fitted here names no folder, and say what the Hub is asked for with the token."""
    from huggingface_hub import get_token

    if data.dataset == "digits":
        return
    what = f"{manifest.name}: its star.json names the images {data.dataset!r}"
    if not is_repo(data.dataset):
        raise UntrustedInputError(
            data.dataset, f"{what}, a folder of another machine", hint=f"name the images here: {option} DATASET"
        )
    if any(text and not _NO_PATH.fullmatch(text) for text in (data.name, data.revision)):
        raise UntrustedInputError(
            data.dataset,
            f"{what} with the configuration {data.name!r} and the revision {data.revision!r}, which cannot be",
            hint=f"name the images yourself: {option} DATASET",
        )
    if is_local_dataset(data):
        raise UsageError(
            data.dataset,
            f"{what} of the Hub, and a folder here is called so too",
            hint=f"give {option} {data.dataset} if the folder is meant, or another current folder",
        )
    if not is_offline() and get_token() is not None:
        warn_once(f"{what}; the Hub is asked for them with your token")


def _check_memory(manifest: StarManifest) -> None:
    """Make sure that the settings of a star which was not fitted on this machine do not fill it."""
    align, evaluate = manifest.config.align, manifest.config.evaluate
    size = 4 * math.prod(manifest.architecture.preprocessing.input_size)
    for name, images in (("align.images", align.images), ("evaluate.batch_size", evaluate.batch_size)):
        if images * size > _MAX_BYTES:
            raise UntrustedInputError(
                manifest.name,
                f"its star.json has {name} = {images:,}, which take {images * size / 1e9:.0f} GB",
                hint="ask its author for a star with less",
            )
