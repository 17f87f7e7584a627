"""Bring a model in from the Hub: one commit, checked before its weights are downloaded, verified afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starzoo.architecture import Architecture
from starzoo.errors import HubError, UntrustedInputError, UsageError
from starzoo.hub.failures import hub_failures
from starzoo.hub.inspect import check_tensors, header_length, parse_header, read_header
from starzoo.hub.ref import ModelRef
from starzoo.hub.strict_json import read_json
from starzoo.progress import Progress, silent

__all__ = ["Snapshot", "pull"]

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_OPTIONAL = ("star.json", "permutations.safetensors", "README.md")
_FIRST_BYTES = 100_000
_PICKLES = (".bin", ".pth", ".pt", ".ckpt")


@dataclass(frozen=True)
class Snapshot:
    """The files of one commit in the local cache.

    Attributes:
        folder: Where they are; a folder in timm format.
        repo: The repository.
        sha: The commit.
        files: The SHA-256 of every file that was asked for, by name.
    """

    folder: Path
    repo: str
    sha: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class _File:
    """A file of a commit: its size in bytes, and its SHA-256 or git object id."""

    name: str
    size: int
    digest: str


def pull(ref: ModelRef | str, *, progress: Progress = silent) -> Snapshot:
    """Download the files of a model, and only those, at one commit.

    The revision is resolved once; config.json and the header of the weights are checked before the weights are
    downloaded; the hash of every file is compared with the one that the Hub states for the commit.

    Args:
        ref: A repository.
        progress: Told after every file.

    Returns:
        Where the files are.

    Raises:
        UsageError: `ref` is a local folder.
    """
    where = ModelRef.parse(ref) if isinstance(ref, str) else ref
    if where.repo is None:
        raise UsageError(f"{where}: is a local folder already", hint="give a repository", subject=str(where))
    repo, sha = where.repo, where.resolve()
    listing = _cached_files(repo, sha) if _is_offline() else _listed_files(repo, sha)
    _check_listing(listing, str(where))
    config, digest = _fetch(repo, sha, listing[_CONFIG])
    architecture = Architecture.from_config(read_json(config), str(where))
    _check_weights(repo, sha, listing[_WEIGHTS], architecture, f"{where}: {_WEIGHTS}")
    files = {_CONFIG: digest}
    names = [_WEIGHTS, *(name for name in _OPTIONAL if name in listing)]
    for index, name in enumerate(names):
        progress("downloading", index, len(names))
        _, files[name] = _fetch(repo, sha, listing[name])
    progress("downloading", len(names), len(names))
    return Snapshot(config.parent, repo, sha, files)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return constants.is_offline_mode()


def _listed_files(repo: str, sha: str) -> dict[str, _File]:
    """The files of a commit, as the Hub tells them."""
    from huggingface_hub import HfApi

    with hub_failures(repo, sha):
        siblings = HfApi().model_info(repo, revision=sha, files_metadata=True).siblings or []
    return {
        file.rfilename: _File(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id or "")
        for file in siblings
    }


def _cached_files(repo: str, sha: str) -> dict[str, _File]:
    """The files of a commit that the local cache holds; their blobs are named by the hash that the Hub stated."""
    from huggingface_hub import try_to_load_from_cache

    found = {name: try_to_load_from_cache(repo, name, revision=sha) for name in (_CONFIG, _WEIGHTS, *_OPTIONAL)}
    paths = {name: Path(path) for name, path in found.items() if isinstance(path, str)}
    missing = [name for name in (_CONFIG, _WEIGHTS) if name not in paths]
    if missing:
        raise HubError(
            f"{repo}: {missing[0]} is not in the local cache, and offline",
            hint="unset HF_HUB_OFFLINE and pull it once",
            subject=repo,
        )
    return {name: _File(name, path.stat().st_size, path.resolve().name) for name, path in paths.items()}


def _check_listing(listing: Mapping[str, _File], subject: str) -> None:
    """Say what is missing of a model in timm format, before anything is downloaded."""
    if _CONFIG in listing and _WEIGHTS in listing:
        return
    pickles = [name for name in listing if name.endswith(_PICKLES)]
    hint = "a model in timm format holds config.json and model.safetensors"
    if _CONFIG not in listing:
        what = f"has no {_CONFIG}"
    elif f"{_WEIGHTS}.index.json" in listing:
        what = "holds its weights in several files"
    elif pickles:
        what = f"holds its weights only as {pickles[0]}, which could run code when opened"
        hint = "ask its author for model.safetensors, for instance through https://hf.co/spaces/safetensors/convert"
    else:
        what = f"has no {_WEIGHTS}"
    raise UntrustedInputError(f"{subject}: {what}", hint=hint, subject=subject)


def _check_weights(repo: str, sha: str, file: _File, architecture: Architecture, subject: str) -> None:
    """Check the header of the weights, in the cache or by a request for the first bytes only."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repo, file.name, revision=sha)
    if isinstance(cached, str):
        header = read_header(Path(cached), subject)
    else:
        start = _fetch_range(repo, sha, file.name, 0, min(file.size, _FIRST_BYTES))
        end = 8 + header_length(start, file.size, subject)
        if end > len(start):
            start += _fetch_range(repo, sha, file.name, len(start), end)
        header = parse_header(start[8:end], file.size - end, subject)
    check_tensors(header, architecture.shapes, subject, integers=architecture.integer_tensors)


def _fetch_range(repo: str, sha: str, name: str, start: int, end: int) -> bytes:
    """The bytes of a file from `start` up to, not including, `end`."""
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, lacks a re-export

    headers = {**build_hf_headers(), "range": f"bytes={start}-{end - 1}"}
    with hub_failures(repo, sha):
        response = get_session().get(hf_hub_url(repo, name, revision=sha), headers=headers)
        hf_raise_for_status(response)
        return bytes(response.content)


def _fetch(repo: str, sha: str, file: _File) -> tuple[Path, str]:
    """Download a file unless it is cached, and compare it with its hash; a wrong one is downloaded once more."""
    from huggingface_hub import hf_hub_download

    for force in (False, True):
        with hub_failures(repo, sha):
            path = Path(hf_hub_download(repo, file.name, revision=sha, library_name="starzoo", force_download=force))
        sha256, git_oid = _hashes(path)
        if file.digest in {sha256, git_oid}:
            return path, sha256
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        if _is_offline():
            break
    raise UntrustedInputError(
        f"{repo}: {file.name} does not have the hash that the Hub states for commit {sha[:12]}",
        hint="something changes downloads on their way: try another network, then tell the repository's owner",
        subject=repo,
    )


def _hashes(path: Path) -> tuple[str, str]:
    """The SHA-256 of a file and its git object id: the Hub knows large files by the one and small ones by the other."""
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            git.update(chunk)
    return sha256.hexdigest(), git.hexdigest()
