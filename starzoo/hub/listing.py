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
from starzoo.hub.ref import TIMEOUT, ModelRef, model_info
from starzoo.hub.retry import with_retries
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
    "file_digests",
    "free_bytes",
    "list_files",
    "without",
]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_ANY = 1 << 60
_FILES = {  # the most bytes of each; of the weights, their header and the architecture decide
    CONFIG: JSON_LIMIT,
    WEIGHTS: _ANY,
    "star.json": JSON_LIMIT,
    "permutations.safetensors": 1_000_000_000,
    CARD: JSON_LIMIT,
}
_PICKLES = (".bin", ".pth", ".pt", ".ckpt")
_LARGE = (*_PICKLES, ".safetensors")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHOWN = 5


@dataclass(frozen=True)
class HubFile:
    """A file of a commit.

    Attributes:
        path: Its path in the repository.
        size: Bytes.
        digest: Its SHA-256, or for a small file its git object id.
    """

    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """A model at one commit.

    Attributes:
        ref: The reference that led here.
        repo: The repository.
        sha: The commit.
        files: The files of a model that are there, by name; of one in a sub-folder, the repository's card if need be.
        pickle: The file that holds the weights where there is no model.safetensors, or None.
    """

    ref: ModelRef
    repo: str
    sha: str
    files: Mapping[str, HubFile]
    pickle: HubFile | None = None

    @property
    def all_files(self) -> tuple[HubFile, ...]:
        """All files that a pull downloads."""
        return (*self.files.values(), *([self.pickle] if self.pickle else ()))


def list_files(ref: ModelRef | str) -> Listing:
    """Resolve a reference to a commit, once, and list the files of the model."""
    where = ModelRef.parse(ref) if isinstance(ref, str) else ref
    if where.repo is None:
        raise UsageError(str(where), "is a local folder already", hint="give a repository")
    sha = where.resolve()
    files = _cached_files(where, where.repo, sha) if is_offline() else _listed_files(where, where.repo, sha)
    prefix = _prefix(where)
    found = {name: files[prefix + name] for name in _FILES if prefix + name in files}
    if CARD in files:
        found.setdefault(CARD, files[CARD])
    complete = CONFIG in found and WEIGHTS in found
    pickle = None if complete else _with_digest(where, sha, _pickle_instead(where, files))
    digested = {name: _with_digest(where, sha, file) for name, file in found.items()}
    for name, file in digested.items():
        check_size(where, file, _FILES[name])
    return Listing(where, where.repo, sha, digested, pickle=pickle)


def cached_path(listing: Listing, file: HubFile) -> Path | None:
    """Where a file lies in the local cache."""
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(listing.repo, file.path, revision=listing.sha)
    if isinstance(found, str):
        return Path(found)
    blob = Path(constants.HF_HUB_CACHE) / f"models--{listing.repo.replace('/', '--')}" / "blobs" / file.digest
    return blob if blob.is_file() else None  # the same file in another commit


def check_size(where: ModelRef, file: HubFile, limit: int) -> None:
    """Refuse a file by its size, before it is downloaded."""
    if file.size > limit:
        raise UntrustedInputError(
            str(where),
            f"{file.path[:60]} has {file.size:,} bytes, expected at most {limit:,}",
            hint="do not use it, or tell its author",
        )


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk where a folder is, or will be."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def file_digests(path: Path) -> tuple[str, str]:
    """The SHA-256 of a file and its git object id: the Hub knows large files by the one and small ones by the other."""
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            git.update(chunk)
    return sha256.hexdigest(), git.hexdigest()


def bytes_to_download(listings: Iterable[Listing]) -> int:
    """Bytes that are not in the local cache yet; what several models of a repository share counts once."""
    files = {(listing.repo, file.digest): (listing, file) for listing in listings for file in listing.all_files}
    return sum(file.size for listing, file in files.values() if cached_path(listing, file) is None)


def check_space(listings: Iterable[Listing]) -> None:
    """Make sure that what is to be downloaded fits on the disk."""
    from huggingface_hub import constants

    needed = bytes_to_download(listings)
    free = free_bytes(Path(constants.HF_HUB_CACHE))
    if needed > free:
        raise ResourceError(
            "HF_HOME",
            f"{needed:,} bytes are to be downloaded, but only {free:,} are free in the cache",
            hint="free space, or set HF_HOME to a folder on another disk",
        )


def without(name: str, sizes: Mapping[str, int]) -> tuple[str, str]:
    """Say of a model without one of its two files what it has instead."""
    what = f"has no {name}"
    hint = f"a model in timm format holds {CONFIG} and {WEIGHTS}"
    if shown := sorted((other for other in sizes if other[0] != "."), key=lambda other: (-sizes[other], other)):
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        what += f" among its files ({', '.join(other[:60] for other in shown[:_SHOWN])}{more})"
    if WEIGHTS not in sizes and (others := [other for other in shown if other.endswith(".safetensors")]):
        hint += f"; if {others[0][:60]} holds its weights, put it into a local folder as {WEIGHTS}"
    else:
        hint += ": write them with timm.models.save_for_hf(…, safe_serialization=True)"
    return what, hint


def _listed_files(where: ModelRef, repo: str, sha: str) -> dict[str, HubFile]:
    """The files of a commit, as the Hub tells them."""
    subject = str(where)
    files = [
        HubFile(
            path=file.rfilename,
            size=file.size or 0,
            digest="" if file.size is None else (file.lfs.sha256 if file.lfs else file.blob_id) or "",
        )
        for file in model_info(repo, sha, files=True).siblings or []
    ]
    for file in files:
        if file.path.startswith("/") or "\\" in file.path or ".." in file.path.split("/"):
            raise UntrustedInputError(
                subject,
                f"lists a file {file.path[:60]!r}, which lies outside of the repository",
                hint="do not use it, and report it to the Hub",
            )
    return {file.path: file for file in files}


def _with_digest(where: ModelRef, sha: str, file: HubFile) -> HubFile:
    """A file with its hash and its size: where the list of a mirror states none, its ETag and headers do."""
    if _DIGEST.fullmatch(file.digest):
        return file
    from huggingface_hub import HfApi, hf_hub_url

    repo, subject = where.repo or "", str(where)
    url = hf_hub_url(repo, file.path, revision=sha)
    headers = with_retries(lambda: HfApi().get_hf_file_metadata(url=url, timeout=TIMEOUT), repo, sha)
    if headers.etag is None or not _DIGEST.fullmatch(headers.etag) or headers.commit_hash != sha:
        raise UntrustedInputError(
            subject, f"states no hash of {file.path[:60]!r} at commit {sha[:12]}", hint="is HF_ENDPOINT a Hub?"
        )
    return HubFile(file.path, headers.size or 0, headers.etag)


def _cached_files(where: ModelRef, repo: str, sha: str) -> dict[str, HubFile]:
    """The files of a commit that the local cache holds."""
    from huggingface_hub import try_to_load_from_cache

    config = _prefix(where) + CONFIG
    found = try_to_load_from_cache(repo, config, revision=sha)
    if not isinstance(found, str):
        raise _not_cached(where, CONFIG)
    root = Path(found).parents[config.count("/")]
    paths = {path.relative_to(root).as_posix(): path for path in (*root.iterdir(), *Path(found).parent.iterdir())}
    return {
        name: HubFile(name, path.stat().st_size, _expected_digest(path))
        for name, path in paths.items()
        if path.is_file()
    }


def _expected_digest(path: Path) -> str:
    """The hash that the Hub stated of a cached file, which names its blob; without links, that of the file itself."""
    name = path.resolve().name
    return name if _DIGEST.fullmatch(name) else file_digests(path)[0 if path.name.endswith(_LARGE) else 1]


def _pickle_instead(where: ModelRef, files: Mapping[str, HubFile]) -> HubFile:
    """The pickle that stands for weights which are not there; where there is none, say what is missing of a model."""
    subject, prefix = str(where), _prefix(where)
    here = [path for path in files if path.startswith(prefix) and "/" not in path.removeprefix(prefix)]
    pickles = sorted(path for path in here if path.endswith(_PICKLES))
    sizes = {path.removeprefix(prefix): files[path].size for path in here}
    what, hint = without(WEIGHTS if prefix + CONFIG in files else CONFIG, sizes)
    if prefix + CONFIG not in files:
        inside = [path.removesuffix(f"/{CONFIG}") for path in sorted(files) if path.endswith(f"/{CONFIG}")]
        if below := [f"{where.repo}/{folder}" for folder in inside if folder.startswith(prefix)]:
            what = f"has no {CONFIG}, but {len(below)} of its folders {'has' if len(below) == 1 else 'have'} one"
            hint = f"name the folder: {', '.join(below[:_SHOWN])}"
    elif f"{prefix}{WEIGHTS}.index.json" in files:
        what = "holds its weights in several files"
    elif pickles:
        best = f"{prefix}pytorch_model.bin"
        return files[best if best in pickles else pickles[0]]
    elif is_offline():
        raise _not_cached(where, WEIGHTS)
    raise UntrustedInputError(subject, f"{what}", hint=hint)


def _prefix(where: ModelRef) -> str:
    return f"{where.subfolder}/" if where.subfolder else ""


def _not_cached(where: ModelRef, name: str) -> HubError:
    hint = f"{ONLINE_HINT}, and pull it once"
    return HubError(where.model_id, f"{name} is not in the local cache, and offline", hint=hint)
