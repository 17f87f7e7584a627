"""Check this machine: versions, devices, caches, disk and the scope of the token."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from starzoo.errors import HubError, without_password
from starzoo.files import bytes_on_disk, cache_folder, list_cache
from starzoo.hub.listing import free_bytes
from starzoo.hub.offline import is_offline
from starzoo.hub.retry import with_retries

__all__ = ["Check", "run_checks"]

_PACKAGES = ("starzoo", "torch", "timm", "huggingface_hub", "safetensors", "datasets", "accelerate")
_CACHES = {"pixels": "decoded images", "evaluations": "measured results", "fingerprints": "fingerprints of data sets"}
_LOW_DISK = 2_000_000_000  # bytes
_INCOMPLETE_AGE = 3600.0  # seconds: a download in progress writes to its file more often


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: The name of the check.
        result: A version, a path, a number …
        hint: What to do about a problem; empty without one.
    """

    name: str
    result: str
    hint: str = ""


def run_checks(*, clean: bool = False) -> list[Check]:
    """Check everything that a run needs."""
    return [*_versions(), *_devices(), *_cache(clean), _token()]


def _versions() -> Iterator[Check]:
    yield Check("python", platform.python_version())
    for package in _PACKAGES:
        try:
            yield Check(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Check(package, "missing", f"pip install {package}")


def _devices() -> Iterator[Check]:
    import torch

    yield Check("processors", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()))
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    names += ["mps"] if torch.backends.mps.is_available() else []
    yield Check("accelerators", ", ".join(names) or "none")


def _cache(clean: bool) -> Iterator[Check]:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    free = free_bytes(cache)
    yield Check("cache of the Hub", str(cache))
    yield Check("cache of starzoo", str(cache_folder("")))
    yield Check("free disk", f"{free / 1e9:.1f} GB", "free space, or set HF_HOME" if free < _LOW_DISK else "")
    for kind, content in _CACHES.items():
        cached = list(list_cache(cache_folder(kind)))
        size = sum(bytes_on_disk(status) for _, status in cached)
        if clean and kind == "pixels":  # they are decoded again, while results take much longer
            for path, _ in cached:
                path.unlink(missing_ok=True)
        action = " removed" if clean and kind == "pixels" else ""
        yield Check(content, f"{size / 1e9:.1f} GB{action}, in {cache_folder(kind)}")
    files = list(_incomplete_downloads())
    if clean:
        size = sum(file.stat().st_size for file in files)
        for file in files:
            file.unlink(missing_ok=True)
        yield Check("incomplete downloads", f"{len(files)} removed, {size:,} bytes")
    else:
        yield Check("incomplete downloads", str(len(files)), "starzoo doctor --clean" if files else "")


def _incomplete_downloads() -> Iterator[Path]:
    from huggingface_hub import constants

    for file in Path(constants.HF_HUB_CACHE).glob("*--*/blobs/*.incomplete"):
        if time.time() - file.stat().st_mtime > _INCOMPLETE_AGE:
            yield file


def _token() -> Check:
    """Check whose token it is, and its scope, by the Hub."""
    from huggingface_hub import HfApi, constants, get_token

    name = f"token for {without_password(constants.ENDPOINT)}"
    if get_token() is None:
        return Check(name, "none", "set HF_TOKEN to push, or to pull what is private or gated")
    if is_offline():
        return Check(name, "there is one; offline, it is not tried")
    try:
        user = with_retries(lambda: HfApi().whoami(), "the Hub")
    except HubError as error:
        return Check(name, error.message, error.hint)
    scope = user.get("auth", {}).get("accessToken", {}).get("role", "unknown")
    return Check(name, f"{user['name']}, scope {scope}", "it cannot push" if scope == "read" else "")
