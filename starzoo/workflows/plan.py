"""Estimate the cost of a star from file listings, configurations and headers of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from starzoo.align.activation_features import max_feature_elements
from starzoo.config import RunConfig
from starzoo.errors import ResourceError, UsageError
from starzoo.evaluate.storage import pixel_bytes, prediction_bytes
from starzoo.hub.download import fetch
from starzoo.hub.listing import CARD, Listing, bytes_to_download, free_bytes, list_files
from starzoo.hub.ref import ModelRef
from starzoo.hub.thread_map import thread_map
from starzoo.models.architecture import Architecture
from starzoo.models.batch_norm import has_batch_norm
from starzoo.models.compatibility import check_architectures, check_have_classes
from starzoo.models.licenses import Licensing, combine_licenses, read_license
from starzoo.models.pull import architecture_of, check_pickle, read_weights_header
from starzoo.models.safetensors_header import read_header, stored_dtype
from starzoo.models.timm_config import TimmConfig
from starzoo.models.timm_folder import CONFIG_FILE, check_files, find_weights, read_architecture
from starzoo.models.timm_weights import check_header
from starzoo.models.training.optimizer import check_optimizer
from starzoo.strict_json import read_json
from starzoo.workflows.refs import resolve_zoo

__all__ = ["Plan", "PlannedModel", "plan_star"]

_DIGITS_TRAIN_SIZE, _DIGITS_TEST_SIZE = 1437, 360


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """One model of a star that is not fitted yet.

    Attributes:
        name: Its name in messages.
        role: `source` or `held-out`.
        sha: The commit, or None for a local folder.
        architecture: The architecture of its config.json, with its preprocessing.
        dtype: The type of its weights, or `unknown` for a pickle that is not converted.
        license: The license that its card states, or None.
        size: Bytes of all its files.
        to_download: Bytes of them that are not on this machine.
    """

    name: str
    role: str = ""
    sha: str | None
    architecture: Architecture
    dtype: str
    license: str | None
    size: int
    to_download: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of fitting a star.

    Attributes:
        models: The models, sources first.
        to_download: Bytes to download; files that models of one repository share count once.
        free: Free bytes on the disk of the local cache.
        parameters: Parameters and buffers of one model.
        memory: Bytes for weights: of all models, of the star with gradient and momentum, and of a point on a path,
            without activations and images, which depend on the batch.
        alignment_memory: Bytes that alignment keeps of the sources during the fit, at most.
        images: Training images, where their number is known without opening the data set.
        steps: Optimizer steps, where the number of images is known.
        licensing: The licenses that the star may have.
        ranks: Processes of the run: `runtime.num_processes`, or 1.
        memory_per_rank: Bytes for weights and alignment of one process; each process has them all.
        images_per_step: Images that each process loads for a step.
        predictions: Bytes of the predictions in the cache, where the number of test images is known.
        pixels: Bytes of decoded images, in a file where a split is large, where the numbers of images are known.
    """

    models: tuple[PlannedModel, ...]
    to_download: int
    free: int
    parameters: int
    memory: int
    alignment_memory: int
    images: int | None
    steps: int | None
    licensing: Licensing
    ranks: int
    memory_per_rank: int
    images_per_step: int
    predictions: int | None
    pixels: int | None


def plan_star(sources: Sequence[str], holdouts: Sequence[str], config: RunConfig) -> Plan:
    """Inspect all models without downloading any weights, and estimate the cost of fitting their star.

    config.json and the cards, which are small, are downloaded, and the headers of the weights are checked. The rest is
    `to_download`.

    Args:
        sources: References of the models that the star is fitted on, at least two.
        holdouts: References of models that it never sees.
        config: The run's configuration.

    Returns:
        The plan.

    Raises:
        UsageError: There are fewer than two sources.
        ResourceError: There is not enough free disk space.
    """
    sources, holdouts = resolve_zoo(sources, holdouts)
    if len(sources) < 2:
        raise UsageError("SOURCE", "a star needs at least two sources", hint="give more model references")
    check_optimizer(config.star.optimizer)
    refs, count = [ModelRef.parse(ref) for ref in (*sources, *holdouts)], len(sources)
    remote = [ref for ref in dict.fromkeys(refs) if ref.folder is None]
    listings = thread_map(list_files, remote)
    image_size = config.data.image_size
    inspect = partial(_inspect_remote, image_size=image_size)
    inspected = dict(zip(remote, thread_map(inspect, listings), strict=True))
    models = [inspected[ref] if ref.folder is None else _inspect_local(ref.folder, image_size) for ref in refs]
    models = [replace(model, role="source" if index < count else "held-out") for index, model in enumerate(models)]
    check_architectures(models)
    check_have_classes(models)
    parameters = sum(math.prod(shape) for shape in models[0].architecture.shapes.values())
    features = max_feature_elements(count) if config.align.needs_images else 0
    is_digits = config.data.dataset == "digits"
    images = config.data.train_size or (_DIGITS_TRAIN_SIZE if is_digits else None)
    test_images = config.data.test_size or (_DIGITS_TEST_SIZE if is_digits else None)
    architecture, ranks = models[0].architecture, config.runtime.num_processes or 1
    memory, alignment_memory = 4 * parameters * (len(models) + 4), 4 * count * (parameters + features)
    splits = {"train": images, "test": test_images} if images and test_images else {}
    return Plan(
        models=tuple(models),
        to_download=bytes_to_download(listings),
        free=_check_free_space(bytes_to_download(listings)),
        parameters=parameters,
        memory=memory,
        alignment_memory=alignment_memory,
        images=images,
        steps=config.star.epochs * (images // config.star.batch_size) if images else None,
        licensing=combine_licenses([model.license for model in models[:count] if model.sha or model.license]),
        ranks=ranks,
        memory_per_rank=memory + alignment_memory,
        images_per_step=config.star.batch_size // ranks,
        predictions=prediction_bytes(
            config.evaluate,
            {name: number for name, number in splits.items() if name in config.evaluate.splits},
            classes=architecture.num_classes,
            models=len(models) + 1,
            has_batch_norm=has_batch_norm(architecture.build_meta()),
        )
        if splits
        else None,
        pixels=pixel_bytes(splits, architecture.preprocessing.input_size) if splits else None,
    )


def _inspect_remote(listing: Listing, *, image_size: int | None) -> PlannedModel:
    check_pickle(listing)
    architecture = architecture_of(listing, image_size=image_size)
    card = fetch(listing, listing.files[CARD])[0] if CARD in listing.files else None
    return PlannedModel(
        name=listing.ref.model_id,
        sha=listing.sha,
        architecture=architecture,
        dtype="unknown" if listing.pickle else stored_dtype(read_weights_header(listing)),
        license=read_license(card),
        size=sum(file.size for file in listing.all_files),
        to_download=bytes_to_download([listing]),
    )


def _inspect_local(folder: Path, image_size: int | None) -> PlannedModel:
    check_files(folder, str(folder))
    architecture, file = read_architecture(folder, image_size=image_size), find_weights(folder)
    header, config = read_header(file), TimmConfig.parse(read_json(folder / CONFIG_FILE), str(folder))
    check_header(header, config.at_size(image_size), architecture, str(file))
    return PlannedModel(
        name=folder.resolve().name,
        sha=None,
        architecture=architecture,
        dtype=stored_dtype(header),
        license=read_license(folder / CARD),
        size=file.stat().st_size + (folder / CONFIG_FILE).stat().st_size,
        to_download=0,
    )


def _check_free_space(needed: int) -> int:
    """Return the free bytes in the local cache, of which a number is needed."""
    from huggingface_hub import constants

    free = free_bytes(Path(constants.HF_HUB_CACHE))
    if needed > free:
        raise ResourceError(
            "HF_HOME",
            f"{needed:,} bytes are to be downloaded, but only {free:,} are free in the cache",
            hint="free space, or set HF_HOME to a folder on another disk",
        )
    return free
