"""Download models at one commit, checked before their weights are read and verified afterward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from starzoo.errors import UntrustedInputError
from starzoo.hub.download import fetch, fetch_range
from starzoo.hub.listing import (
    CARD,
    CONFIG,
    WEIGHTS,
    Listing,
    cached_path,
    check_size,
    check_space,
    file_digests,
    list_files,
)
from starzoo.hub.ref import ModelRef
from starzoo.hub.thread_map import thread_map
from starzoo.models.architecture import Architecture
from starzoo.models.convert_pickle import convert_snapshot, is_converted
from starzoo.models.safetensors_header import TensorInfo, header_length, parse_header, read_header
from starzoo.models.timm_config import TimmConfig
from starzoo.models.timm_weights import check_header
from starzoo.progress import Progress, no_progress
from starzoo.strict_json import read_json

__all__ = ["Snapshot", "architecture_of", "check_pickle", "pull", "pull_all", "read_weights_header"]

_PICKLE_BYTES, _PICKLE_EXTRA = 32, 10_000_000
"""A checkpoint may hold averaged weights and an optimizer's state beside every weight, and notes of the training."""


@dataclass(frozen=True)
class Snapshot:
    """The files of one model at one commit in the local cache.

    Attributes:
        folder: Their folder, in timm format.
        repo: The repository.
        sha: The commit.
        files: The SHA-256 of every requested file, by name.
        subfolder: The folder of the repository that holds the model; empty for the root.
        card: The card that states the license: the model's, else the repository's, or None.
    """

    folder: Path
    repo: str
    sha: str
    files: Mapping[str, str]
    subfolder: str = ""
    card: Path | None = None

    @property
    def model_id(self) -> str:
        """The repository, with the folder that holds the model."""
        return f"{self.repo}/{self.subfolder}" if self.subfolder else self.repo


def pull(ref: ModelRef | str, *, allow_pickle: bool = False, progress: Progress = no_progress) -> Snapshot:
    """Download the files of a model, and only those, at one commit.

    The revision is resolved once; config.json and the header of the weights are checked before the weights are
    downloaded; the hash of every file is compared with the one that the Hub states for the commit.

    Args:
        ref: A repository, or a folder in one.
        allow_pickle: Convert weights that are only a pickle, once, in a process of its own.
        progress: Called after every file.

    Returns:
        The files in the local cache.
    """
    return pull_all([ref], allow_pickle=allow_pickle, progress=progress)[0]


def pull_all(
    refs: Sequence[ModelRef | str], *, allow_pickle: bool = False, progress: Progress = no_progress
) -> list[Snapshot]:
    """Download several models at the same time, as `pull` does; none unless all of them fit on the disk."""
    parsed = [ModelRef.parse(ref) if isinstance(ref, str) else ref for ref in refs]
    unique = list(dict.fromkeys(parsed))
    listings = thread_map(list_files, unique)
    for listing in listings:
        check_pickle(listing, allow_pickle)
    check_space(listings)
    total, done, lock = sum(len(listing.files) for listing in listings), 0, Lock()
    progress("downloading", 0, total)

    def count_file() -> None:
        nonlocal done
        with lock:
            done += 1
            progress("downloading", done, total)

    models = thread_map(lambda listing: _download_model(listing, count_file), listings)
    snapshots = dict(zip(unique, models, strict=True))
    return [snapshots[ref] for ref in parsed]


def architecture_of(listing: Listing, *, image_size: int | None = None) -> Architecture:
    """Read a model's config.json, from the cache or the Hub."""
    config = read_json(fetch(listing, listing.files[CONFIG])[0])
    return Architecture.from_config(config, str(listing.ref), image_size=image_size)


def read_weights_header(listing: Listing) -> dict[str, TensorInfo]:
    """Read and check config.json and the header of the weights, of which no more than the header is downloaded."""
    config = read_json(fetch(listing, listing.files[CONFIG])[0])
    architecture = Architecture.from_config(config, str(listing.ref))
    file, subject = listing.files[WEIGHTS], f"{listing.ref}: {WEIGHTS}"
    if path := cached_path(listing, file):
        header = read_header(path, subject)
    else:
        start = fetch_range(listing, file.path, 0, min(file.size, 8))
        end = 8 + header_length(start, file.size, subject)
        header = parse_header(fetch_range(listing, file.path, 8, end), file.size - end, subject)
    check_header(header, TimmConfig.parse(config, subject), architecture, subject)
    return header


def check_pickle(listing: Listing, allowed: bool = False) -> None:
    """Refuse weights that are only a pickle, unless they were converted before, or may be."""
    pickle = listing.pickle
    if pickle is None or allowed or is_converted(pickle.digest, listing.files[CONFIG].digest):
        return
    raise UntrustedInputError(
        str(listing.ref),
        f"holds its weights only as {pickle.path}, which could run code when opened",
        hint="ask its author for model.safetensors, or convert them in a process of their own with "
        f"`starzoo pull --allow-pickle {listing.ref}`",
    )


def _download_model(listing: Listing, count_file: Callable[[], None]) -> Snapshot:
    """Check and download one model."""
    config, digest = fetch(listing, listing.files[CONFIG])
    count_file()
    if listing.pickle is None:
        read_weights_header(listing)
    else:
        parameters = sum(map(math.prod, Architecture.from_config(read_json(config), str(listing.ref)).shapes.values()))
        check_size(listing.ref, listing.pickle, _PICKLE_BYTES * parameters + _PICKLE_EXTRA)
    paths, files = {CONFIG: config}, {CONFIG: digest}
    for name, file in listing.files.items():
        if name != CONFIG:
            paths[name], files[name] = fetch(listing, file)
            count_file()
    folder = config.parent
    if pickle := listing.pickle:
        digests = pickle.digest, listing.files[CONFIG].digest
        folder = convert_snapshot(config, lambda: fetch(listing, pickle)[0], digests, str(listing.ref))
        files[WEIGHTS] = file_digests(folder / WEIGHTS)[0]
    return Snapshot(folder, listing.repo, listing.sha, files, listing.ref.subfolder, paths.get(CARD))
