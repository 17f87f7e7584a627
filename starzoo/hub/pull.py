"""Bring models in from the Hub: each at one commit, checked before its weights are downloaded, verified afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from starzoo.architecture import Architecture
from starzoo.errors import UntrustedInputError
from starzoo.hub.failures import xet_failures
from starzoo.hub.inspect import TensorInfo, header_length, parse_header, read_header
from starzoo.hub.listing import (
    CARD,
    CONFIG,
    WEIGHTS,
    HubFile,
    Listing,
    cached,
    check_size,
    check_space,
    hashes,
    look_up,
)
from starzoo.hub.offline import GO_ONLINE, is_offline
from starzoo.hub.parallel import in_threads, stoppable_bar
from starzoo.hub.patience import patiently
from starzoo.hub.pickles import converted, is_converted
from starzoo.hub.ref import TIMEOUT, ModelRef
from starzoo.hub.strict_json import read_json
from starzoo.progress import Progress, silent
from starzoo.timm_config import TimmConfig
from starzoo.timm_weights import check_header

__all__ = ["Snapshot", "architecture_of", "check_pickle", "fetch", "pull", "pull_all", "read_weights_header"]

_PICKLE_BYTES, _PICKLE_MORE = 32, 10_000_000
"""A training may keep averaged weights and an optimizer's states beside every weight, and notes beside them all."""


@dataclass(frozen=True)
class Snapshot:
    """The files of one model at one commit in the local cache.

    Attributes:
        folder: Where they are; a folder in timm format.
        repo: The repository.
        sha: The commit.
        files: The SHA-256 of every file that was asked for, by name.
        inside: The folder of the repository that holds the model; empty for the root.
        card: The card that states the licence: the model's, else the repository's, or None.
    """

    folder: Path
    repo: str
    sha: str
    files: Mapping[str, str]
    inside: str = ""
    card: Path | None = None

    @property
    def place(self) -> str:
        """The repository, with the folder that holds the model."""
        return f"{self.repo}/{self.inside}" if self.inside else self.repo


def pull(ref: ModelRef | str, *, allow_pickle: bool = False, progress: Progress = silent) -> Snapshot:
    """Download the files of a model, and only those, at one commit.

    The revision is resolved once; config.json and the header of the weights are checked before the weights are
    downloaded; the hash of every file is compared with the one that the Hub states for the commit.

    Args:
        ref: A repository, or a folder in one.
        allow_pickle: Convert weights that are there only as a pickle, once, in a process of its own.
        progress: Told after every file.

    Returns:
        Where the files are.
    """
    return pull_all([ref], allow_pickle=allow_pickle, progress=progress)[0]


def pull_all(
    refs: Sequence[ModelRef | str], *, allow_pickle: bool = False, progress: Progress = silent
) -> list[Snapshot]:
    """Download several models at the same time, as `pull` does; none unless all of them fit on the disk.

    Args:
        refs: Repositories, or folders in them.
        allow_pickle: Convert weights that are there only as a pickle, once, in a process of its own.
        progress: Told after every file.

    Returns:
        Where the files of each are, in the order of `refs`.
    """
    wheres = [ModelRef.parse(ref) if isinstance(ref, str) else ref for ref in refs]
    different = list(dict.fromkeys(wheres))
    listings = in_threads(look_up, different)
    for listing in listings:
        check_pickle(listing, allow_pickle)
    check_space(listings)
    total, done, lock = sum(len(listing.files) for listing in listings), 0, Lock()
    progress("downloading", 0, total)

    def finished() -> None:
        nonlocal done
        with lock:
            done += 1
            progress("downloading", done, total)

    snapshots = dict(zip(different, in_threads(lambda listing: _bring(listing, finished), listings), strict=True))
    return [snapshots[where] for where in wheres]


def fetch(listing: Listing, file: HubFile) -> tuple[Path, str]:
    """Download a file unless it is cached, and compare it with its hash; a wrong one is downloaded once more.

    Args:
        listing: The model.
        file: One of its files.

    Returns:
        Where it is, and its SHA-256.

    Raises:
        UntrustedInputError: Its hash is not the one that the Hub states.
    """
    from huggingface_hub import hf_hub_download

    def download(force: bool) -> str:
        with xet_failures(listing.repo):
            found: str = hf_hub_download(
                listing.repo,
                file.path,
                revision=listing.sha,
                library_name="starzoo",
                force_download=force,
                tqdm_class=stoppable_bar(),
            )
        return found

    for force in (False, True):
        path = Path(patiently(lambda force=force: download(force), listing.repo, listing.sha))  # type: ignore[misc]
        sha256, git_oid = hashes(path)
        if file.digest in {sha256, git_oid}:
            return path, sha256
        if is_offline():  # the only copy
            raise UntrustedInputError(
                f"{listing.repo}: {file.path} in the local cache is damaged: its hash is not the one of the Hub",
                hint=f"{GO_ONLINE}, and pull it again",
                subject=listing.repo,
            )
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    raise UntrustedInputError(
        f"{listing.repo}: {file.path} does not have the hash that the Hub states for commit {listing.sha[:12]}",
        hint="something changes downloads on their way: try another network, then tell the repository's owner",
        subject=listing.repo,
    )


def architecture_of(listing: Listing) -> Architecture:
    """Read a model's config.json, which is downloaded where that is needed.

    Args:
        listing: The model.

    Returns:
        The architecture.
    """
    return Architecture.from_config(read_json(fetch(listing, listing.files[CONFIG])[0]), str(listing.ref))


def read_weights_header(listing: Listing) -> dict[str, TensorInfo]:
    """Check config.json and the header of the weights, in the cache or by requests for its bytes only.

    Args:
        listing: The model.

    Returns:
        Every tensor by name.
    """
    config = read_json(fetch(listing, listing.files[CONFIG])[0])
    architecture = Architecture.from_config(config, str(listing.ref))
    file, subject = listing.files[WEIGHTS], f"{listing.ref}: {WEIGHTS}"
    if here := cached(listing, file):
        header = read_header(here, subject)
    else:
        start = _fetch_range(listing, file.path, 0, min(file.size, 8))
        end = 8 + header_length(start, file.size, subject)
        header = parse_header(_fetch_range(listing, file.path, 8, end), file.size - end, subject)
    check_header(header, TimmConfig.parse(config, subject), architecture, subject)
    return header


def check_pickle(listing: Listing, allowed: bool = False) -> None:
    """Refuse weights that are there only as a pickle, unless they are converted already, or may be.

    Args:
        listing: The model.
        allowed: Whether they may be.

    Raises:
        UntrustedInputError: They are such a pickle.
    """
    pickle = listing.pickle
    if pickle is None or allowed or is_converted(pickle.digest, listing.files[CONFIG].digest):
        return
    raise UntrustedInputError(
        f"{listing.ref}: holds its weights only as {pickle.path}, which could run code when opened",
        hint="ask its author for model.safetensors, or convert them in a process of their own with "
        f"`starzoo pull --allow-pickle {listing.ref}`",
        subject=str(listing.ref),
    )


def _bring(listing: Listing, finished: Callable[[], None]) -> Snapshot:
    """Check and download one model."""
    config, digest = fetch(listing, listing.files[CONFIG])
    finished()
    if listing.pickle is None:
        read_weights_header(listing)
    else:
        numbers = sum(map(math.prod, Architecture.from_config(read_json(config), str(listing.ref)).shapes.values()))
        check_size(listing.ref, listing.pickle, _PICKLE_BYTES * numbers + _PICKLE_MORE)
    paths, files = {CONFIG: config}, {CONFIG: digest}
    for name in (name for name in listing.files if name != CONFIG):
        paths[name], files[name] = fetch(listing, listing.files[name])
        finished()
    folder = config.parent
    if listing.pickle is not None:
        folder = converted(
            config,
            lambda pickle=listing.pickle: fetch(listing, pickle)[0],  # type: ignore[misc]
            (listing.pickle.digest, listing.files[CONFIG].digest),
            str(listing.ref),
        )
        files[WEIGHTS] = hashes(folder / WEIGHTS)[0]
    return Snapshot(folder, listing.repo, listing.sha, files, listing.ref.inside, paths.get(CARD))


def _fetch_range(listing: Listing, path: str, start: int, end: int) -> bytes:
    """The bytes of a file from `start` up to, not including, `end`."""
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, lacks a re-export

    def ask() -> bytes:
        headers = {**build_hf_headers(), "range": f"bytes={start}-{end - 1}"}
        url = hf_hub_url(listing.repo, path, revision=listing.sha)
        response = get_session().get(url, headers=headers, timeout=TIMEOUT)
        hf_raise_for_status(response)
        return bytes(response.content)

    return patiently(ask, listing.repo, listing.sha)
