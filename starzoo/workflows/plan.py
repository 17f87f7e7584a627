"""Estimate the cost of a star from listings, configurations and headers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from starzoo.align.activation_features import max_feature_elements
from starzoo.config import RunConfig
from starzoo.errors import ResourceError, UsageError
from starzoo.hub.download import fetch
from starzoo.hub.listing import CARD, Listing, bytes_to_download, free_bytes, list_files
from starzoo.hub.ref import ModelRef
from starzoo.hub.thread_map import thread_map
from starzoo.models.architecture import Architecture
from starzoo.models.compatibility import check_architectures, check_have_classes
from starzoo.models.licenses import Licensing, combine_licenses, read_license
from starzoo.models.pull import architecture_of, check_pickle, read_weights_header
from starzoo.models.safetensors_header import read_header, stored_dtype
from starzoo.models.timm_config import TimmConfig
from starzoo.models.timm_folder import CONFIG_FILE, check_files, find_weights, read_architecture, read_json
from starzoo.models.timm_weights import check_header
from starzoo.workflows.refs import resolve_zoo

__all__ = ["Plan", "PlannedModel", "plan_star"]

_DIGITS = 1437


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """One model of a star that is not fitted yet.

    Attributes:
        name: What messages call it.
        role: `source` or `held-out`.
        sha: The commit, or None for a local folder.
        architecture: What its config.json says, with its preprocessing.
        dtype: The type of its weights, or `unknown` for a pickle that is not converted.
        license: What its card says, or None.
        size: Bytes of all its files.
        to_download: Bytes of them that are not on this machine.
    """

    name: str
    role: str
    sha: str | None
    architecture: Architecture
    dtype: str
    license: str | None
    size: int
    to_download: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What fitting a star will take.

    Attributes:
        models: The models, sources first.
        to_download: Bytes to download; what models of one repository share counts once.
        free: Free bytes on the disk of the local cache.
        parameters: Numbers in the weights of one model.
        memory: Bytes for weights: of all models, of the star with gradient and momentum, and of a point on a path.
            Activations and images come on top; they depend on the batch.
        evidence: Bytes that alignment keeps of the sources while the star is fitted, at most.
        images: Training images, where they are known without opening the data set.
        steps: Optimizer steps, where the number of images is known.
        licensing: The license that the star may have.
    """

    models: tuple[PlannedModel, ...]
    to_download: int
    free: int
    parameters: int
    memory: int
    evidence: int
    images: int | None
    steps: int | None
    licensing: Licensing


def plan_star(sources: Sequence[str], holdouts: Sequence[str], config: RunConfig) -> Plan:
    """Look at all models without downloading any weights, and say what fitting their star will take.

    config.json and the cards are downloaded, which are small, and the headers of the weights are checked; `to_download`
    is what is missing after that.

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
    refs = [ModelRef.parse(ref) for ref in (*sources, *holdouts)]
    different = [ref for ref in dict.fromkeys(refs) if ref.folder is None]
    listings = dict(zip(different, thread_map(list_files, different), strict=True))
    seen = dict(zip(different, thread_map(_look_at, list(listings.values())), strict=True))
    models = [
        replace(
            seen[ref] if ref.folder is None else _look_at_folder(ref.folder),
            role="source" if number < len(sources) else "held-out",
        )
        for number, ref in enumerate(refs)
    ]
    check_architectures(models)
    check_have_classes(models)
    needed, free = bytes_to_download(listings.values()), _free()
    if needed > free:
        raise ResourceError(
            "HF_HOME",
            f"{needed:,} bytes are to be downloaded, but only {free:,} are free in the cache",
            hint="free space, or set HF_HOME to a folder on another disk",
        )
    numbers = sum(math.prod(shape) for shape in models[0].architecture.shapes.values())
    images = config.data.train_size or (_DIGITS if config.data.dataset == "digits" else None)
    steps = (
        config.star.epochs * (images // config.star.batch_size) if images else None
    )  # incomplete batches are left out
    return Plan(
        models=tuple(models),
        to_download=needed,
        free=free,
        parameters=numbers,
        memory=4 * numbers * (len(models) + 4),
        evidence=4
        * len(sources)
        * (numbers + (max_feature_elements(len(sources)) if config.align.needs_images else 0)),
        images=images,
        steps=steps,
        licensing=combine_licenses([model.license for model in models[: len(sources)] if model.sha or model.license]),
    )


def _look_at(listing: Listing) -> PlannedModel:
    check_pickle(listing)
    architecture = architecture_of(listing)
    card = fetch(listing, listing.files[CARD])[0] if CARD in listing.files else None
    return PlannedModel(
        name=listing.ref.model_id,
        role="",
        sha=listing.sha,
        architecture=architecture,
        dtype="unknown" if listing.pickle else stored_dtype(read_weights_header(listing)),
        license=read_license(card),
        size=sum(file.size for file in listing.all_files),
        to_download=bytes_to_download([listing]),
    )


def _look_at_folder(folder: Path) -> PlannedModel:
    check_files(folder, str(folder))
    architecture, file = read_architecture(folder), find_weights(folder)
    header = read_header(file)
    check_header(header, TimmConfig.parse(read_json(folder / CONFIG_FILE), str(folder)), architecture, str(file))
    return PlannedModel(
        name=folder.resolve().name,
        role="",
        sha=None,
        architecture=architecture,
        dtype=stored_dtype(header),
        license=read_license(folder / CARD),
        size=file.stat().st_size + (folder / CONFIG_FILE).stat().st_size,
        to_download=0,
    )


def _free() -> int:
    from huggingface_hub import constants

    return free_bytes(Path(constants.HF_HUB_CACHE))
