"""List the files of a model at one commit, from the Hub or the local cache."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from starzoo.errors import HubError, ResourceError, UntrustedInputError, UsageError
from starzoo.hub.offline import ONLINE_HINT, is_offline
from starzoo.hub.ref import ModelRef, file_metadata, model_info
from starzoo.strict_json import JSON_LIMIT

__all__ = [
    "CARD",
    "CONFIG",
    "WEIGHTS",
    "HubFile",
    "Listing",
    "bytes_to_download",
    "cached_path",
    "check_size",
    "check_space",
    "describe_missing_file",
    "file_digests",
    "free_bytes",
    "list_files",
]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_UNLIMITED = 1 << 60
_MAX_BYTES = {  # of each file; the size of the weights is checked against their header and the architecture
    CONFIG: JSON_LIMIT,
    WEIGHTS: _UNLIMITED,
    "star.json": JSON_LIMIT,
    "permutations.safetensors": 1_000_000_000,
    CARD: JSON_LIMIT,
}
_PICKLES = (".bin", ".pth", ".pt", ".ckpt")
_LARGE = (*_PICKLES, ".safetensors")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MAX_SHOWN_FILES = 5
_MAX_SHOWN_CHARACTERS = 60  # of the name of a file, in a message


@dataclass(frozen=True)
class HubFile:
    """A file of a commit."""

    path: str
    size: int
    digest: str  # SHA-256, or the git object id of a small file


@dataclass(frozen=True)
class Listing:
    """The files of a model at one commit, by name; a subfolder without a card has the card of the repository."""

    ref: ModelRef
    repo: str
    sha: str
    files: Mapping[str, HubFile]
    pickle: HubFile | None = None  # holds the weights where there is no model.safetensors

    @property
    def all_files(self) -> tuple[HubFile, ...]:
        """All files that a pull downloads."""
        return (*self.files.values(), *([self.pickle] if self.pickle else ()))


def list_files(ref: ModelRef | str) -> Listing:
    """Resolve a reference to a commit and list the files of the model."""
    ref = ModelRef.parse(ref) if isinstance(ref, str) else ref
    repo = ref.repo
    if repo is None:
        raise UsageError(str(ref), "is a local folder already", hint="give a repository")
    sha, prefix = ref.resolve(), _prefix(ref)
    available = _cached_files(ref, repo, sha) if is_offline() else _listed_files(ref, repo, sha)
    files = {name: available[prefix + name] for name in _MAX_BYTES if prefix + name in available}
    if CARD in available:
        files.setdefault(CARD, available[CARD])
    is_complete = CONFIG in files and WEIGHTS in files
    pickle = None if is_complete else _with_digest(ref, repo, sha, _find_pickle(ref, available))
    files = {name: _with_digest(ref, repo, sha, file) for name, file in files.items()}
    for name, file in files.items():
        check_size(ref, file, _MAX_BYTES[name])
    return Listing(ref, repo, sha, files, pickle=pickle)


def cached_path(listing: Listing, file: HubFile) -> Path | None:
    """Return the path of a file in the local cache, or None."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.file_download import repo_folder_name

    path = try_to_load_from_cache(listing.repo, file.path, revision=listing.sha)
    if isinstance(path, str):
        return Path(path)
    repo_folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=listing.repo, repo_type="model"))
    blob = repo_folder / "blobs" / file.digest
    return blob if blob.is_file() else None  # the same file in another commit


def check_size(ref: ModelRef, file: HubFile, limit: int) -> None:
    """Reject a file by its size before it is downloaded."""
    if file.size > limit:
        raise UntrustedInputError(
            str(ref),
            f"{_shorten(file.path)} has {file.size:,} bytes, expected at most {limit:,}",
            hint="use another model, or tell its author",
        )


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def file_digests(path: Path) -> tuple[str, str]:
    """Return the SHA-256 of a file, which the Hub states of large files, and its git object id, of small ones."""
    sha256 = hashlib.sha256()
    git_oid = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            git_oid.update(chunk)
    return sha256.hexdigest(), git_oid.hexdigest()


def bytes_to_download(listings: Iterable[Listing]) -> int:
    """Return the bytes that are not in the local cache; a file that models of a repository share counts once."""
    files = {(listing.repo, file.digest): (listing, file) for listing in listings for file in listing.all_files}
    return sum(file.size for listing, file in files.values() if cached_path(listing, file) is None)


def check_space(listings: Iterable[Listing]) -> None:
    """Raise a `ResourceError` if the files to download do not fit on the disk."""
    from huggingface_hub import constants

    needed, free = bytes_to_download(listings), free_bytes(Path(constants.HF_HUB_CACHE))
    if needed > free:
        raise ResourceError(
            "HF_HOME",
            f"{needed:,} bytes are to be downloaded, but only {free:,} are free in the cache",
            hint="free space, or set HF_HOME to a folder on another disk",
        )


def describe_missing_file(name: str, sizes: Mapping[str, int]) -> tuple[str, str]:
    """Return the problem and the hint for a model without one of its two files; `sizes` are those of its files."""
    problem, hint = f"has no {name}", f"a model in timm format holds {CONFIG} and {WEIGHTS}"
    names = sorted((file for file in sizes if not file.startswith(".")), key=lambda file: (-sizes[file], file))
    if names:
        more = f" and {len(names) - _MAX_SHOWN_FILES} more" if len(names) > _MAX_SHOWN_FILES else ""
        problem += f" among its files ({', '.join(map(_shorten, names[:_MAX_SHOWN_FILES]))}{more})"
    weights = next((file for file in names if file.endswith(".safetensors")), None)
    if weights and WEIGHTS not in sizes:
        return problem, f"{hint}; if {_shorten(weights)} holds its weights, put it into a local folder as {WEIGHTS}"
    if checkpoint := next((file for file in names if file.endswith((".pth", ".pt", ".ckpt", ".tar"))), None):
        return problem, f"{hint}: starzoo import {_shorten(checkpoint)} --out zoo makes them of a checkpoint"
    return problem, f"{hint}: write them with timm.models.save_for_hf(…, safe_serialization=True)"


def _listed_files(ref: ModelRef, repo: str, sha: str) -> dict[str, HubFile]:
    """The files of a commit, as the Hub lists them."""
    files = {}
    for file in model_info(repo, sha, files=True).siblings or []:
        path = file.rfilename
        if path.startswith("/") or "\\" in path or ".." in path.split("/"):
            raise UntrustedInputError(
                str(ref),
                f"lists a file {_shorten(path)!r}, which lies outside of the repository",
                hint="do not use it, and report it to the Hub",
            )
        # A digest without a size comes from a mirror that states neither: the file's own headers state both.
        digest = "" if file.size is None else (file.lfs.sha256 if file.lfs else file.blob_id) or ""
        files[path] = HubFile(path, file.size or 0, digest)
    return files


def _with_digest(ref: ModelRef, repo: str, sha: str, file: HubFile) -> HubFile:
    """A file with its hash and size, which are in its ETag and headers where the list of a mirror lacks them."""
    if _DIGEST.fullmatch(file.digest):
        return file
    headers = file_metadata(repo, file.path, sha)
    if headers.etag is None or not _DIGEST.fullmatch(headers.etag) or headers.commit_hash != sha:
        raise UntrustedInputError(
            str(ref),
            f"states no hash of {_shorten(file.path)!r} at commit {sha[:12]}",
            hint="check that HF_ENDPOINT is a Hub",
        )
    return HubFile(file.path, headers.size or 0, headers.etag)


def _cached_files(ref: ModelRef, repo: str, sha: str) -> dict[str, HubFile]:
    """The files of a commit that the local cache holds."""
    from huggingface_hub import try_to_load_from_cache

    config = _prefix(ref) + CONFIG
    config_path = try_to_load_from_cache(repo, config, revision=sha)
    if not isinstance(config_path, str):
        raise _not_cached(ref, CONFIG)
    root = Path(config_path).parents[config.count("/")]
    paths = [path for path in (*root.iterdir(), *Path(config_path).parent.iterdir()) if path.is_file()]
    files = [HubFile(path.relative_to(root).as_posix(), path.stat().st_size, _expected_digest(path)) for path in paths]
    return {file.path: file for file in files}


def _expected_digest(path: Path) -> str:
    """The hash that the Hub stated of a cached file: the name of its blob, or in a cache without links its own hash."""
    name = path.resolve().name
    return name if _DIGEST.fullmatch(name) else file_digests(path)[0 if path.name.endswith(_LARGE) else 1]


def _find_pickle(ref: ModelRef, files: Mapping[str, HubFile]) -> HubFile:
    """Return the pickle that holds the weights, or raise an error that says which file is missing."""
    prefix = _prefix(ref)
    names = [name for path in files if path.startswith(prefix) and "/" not in (name := path.removeprefix(prefix))]
    pickles = sorted(name for name in names if name.endswith(_PICKLES))
    problem, hint = describe_missing_file(
        WEIGHTS if CONFIG in names else CONFIG, {name: files[prefix + name].size for name in names}
    )
    if CONFIG not in names:
        folders = [path.removesuffix(f"/{CONFIG}") for path in sorted(files) if path.endswith(f"/{CONFIG}")]
        if models := [f"{ref.repo}/{folder}" for folder in folders if folder.startswith(prefix)]:
            problem = f"has no {CONFIG}, but {len(models)} of its folders {'has' if len(models) == 1 else 'have'} one"
            hint = f"name the folder: {', '.join(models[:_MAX_SHOWN_FILES])}"
    elif f"{WEIGHTS}.index.json" in names:
        problem = "holds its weights in several files"
    elif pickles:
        return files[prefix + ("pytorch_model.bin" if "pytorch_model.bin" in pickles else pickles[0])]
    elif is_offline():
        raise _not_cached(ref, WEIGHTS)
    raise UntrustedInputError(str(ref), problem, hint=hint)


def _prefix(ref: ModelRef) -> str:
    return f"{ref.subfolder}/" if ref.subfolder else ""


def _shorten(name: str) -> str:
    return name[:_MAX_SHOWN_CHARACTERS]


def _not_cached(ref: ModelRef, name: str) -> HubError:
    hint = f"{ONLINE_HINT}, and pull it once"
    return HubError(ref.model_id, f"{name} is not in the local cache, and offline", hint=hint)
