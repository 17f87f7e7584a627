"""Verify a star: file hashes, permutations, sources, logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from starzoo.errors import HubError, StarzooError, UsageError
from starzoo.hub.offline import offline_mode
from starzoo.models.record import ModelRecord
from starzoo.models.sources import Source
from starzoo.models.timm_folder import sha256_file
from starzoo.progress import Progress, no_progress
from starzoo.star.inputs import match_to_star, reload_models
from starzoo.star.manifest import StarManifest
from starzoo.star.run.local_paths import resolve_records
from starzoo.star.star import HASHED_FILES, PERMUTATIONS, Star, download_star, load_star_folder
from starzoo.symmetry import Permutation
from starzoo.symmetry.trace import copy_module

__all__ = ["CheckResult", "verify_star"]

Value = TypeVar("Value")

_TOLERANCE = 1e-6  # relative, in float64: some modules round to float32 internally
_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of one check.

    Attributes:
        subject: The file or the model.
        what: What should hold.
        passed: Whether it does; None where it could not be checked.
        detail: The reason why it does not, or a figure.
    """

    subject: str
    what: str
    passed: bool | None
    detail: str = ""


def verify_star(star: str | Path, *, offline: bool = False, progress: Progress = no_progress) -> list[CheckResult]:
    """Verify a star: recompute everything instead of trusting its star.json.

    Args:
        star: The star's folder, or its repository.
        offline: Send no request: use the files of this machine and the local cache.
        progress: Told after every source.

    Returns:
        All checks. A source that cannot be loaded, offline for example, is not checked. A star passed if all did.
    """
    with offline_mode(offline):
        folder = download_star(star)
        loaded = load_star_folder(folder)
        checks = [*_check_files(loaded.manifest, folder), _check_plain_timm(loaded, folder)]
        for number, record in enumerate(loaded.manifest.sources):
            checks += _check_source(loaded, number, record)
            progress("checking sources", number + 1, len(loaded.manifest.sources))
    return checks


def _check_files(manifest: StarManifest, folder: Path) -> Iterator[CheckResult]:
    what = "has the hash that star.json names"
    for name in HASHED_FILES:
        if name not in manifest.files:
            yield CheckResult(subject=name, what=what, passed=False, detail="star.json names none")
        else:
            actual, expected = sha256_file(folder / name), manifest.files[name]
            detail = "" if actual == expected else f"{actual[:12]} instead of {expected[:12]}"
            yield CheckResult(subject=name, what=what, passed=not detail, detail=detail)


def _check_plain_timm(star: Star, folder: Path) -> CheckResult:
    """Check that plain timm loads the same model from the folder, to the last bit."""
    import timm

    def differences() -> str:
        try:  # `load_star_folder` let config.json through
            plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        except Exception as error:  # noqa: BLE001  with any error the star is not a drop-in
            return f"{type(error).__name__}: {error}"
        images = _random_images(star, torch.float32)
        with torch.inference_mode():
            ours = star.model()
            are_equal = all(torch.equal(plain(image), ours(image)) for image in torch.split(images, 1))
            return "" if are_equal else "they differ"

    difference, check = _run_check(star.manifest.name, "computes the same logits in plain timm", differences)
    return replace(check, passed=False, detail=difference) if difference else check


def _check_source(star: Star, number: int, record: ModelRecord) -> Iterator[CheckResult]:
    """Check a source's permutation, its files, and that the permuted source is the same function."""
    spec = star.manifest.architecture.spec
    permutation, check = _run_check(
        record.name,
        "has a permutation of every group",
        lambda: Permutation.from_tensors(spec, star.permutations[record.name], subject=PERMUTATIONS),
    )
    yield check
    source, check = _run_check(
        record.name,
        "has the files that star.json names",
        lambda: _load_source(star, number, record),
        absent=(HubError,) if record.repo and record.sha else (HubError, UsageError),
    )
    yield check
    if permutation is None or source is None:
        return
    images, states = _random_images(star, torch.float64), (source.state, permutation.apply(source.state))
    before, after = (_logits(source.model(), state, images) for state in states)
    error = float((before - after).norm() / before.norm())
    moved = permutation.count_moved(Permutation.identity(spec))
    yield CheckResult(
        subject=record.name,
        what="computes the same when it is permuted",
        passed=error <= _TOLERANCE,
        detail=f"relative error {error:.1e}; {moved} positions moved",
    )


def _load_source(star: Star, number: int, record: ModelRecord) -> Source:
    paths = star.local_paths.sources
    path = paths[number : number + 1] if len(paths) == len(star.manifest.sources) else ()
    [source] = match_to_star(star, reload_models(star, [record], resolve_records([record], path)))
    return source


def _run_check(
    subject: str, what: str, load: Callable[[], Value], *, absent: tuple[type[StarzooError], ...] = (HubError,)
) -> tuple[Value | None, CheckResult]:
    """Return what `load` gives, and a check that failed with its error; an error of `absent` leaves it unchecked."""
    try:
        return load(), CheckResult(subject=subject, what=what, passed=True)
    except absent as error:
        return None, CheckResult(subject=subject, what=what, passed=None, detail=error.message)
    except StarzooError as error:
        return None, CheckResult(subject=subject, what=what, passed=False, detail=error.message)


def _random_images(star: Star, dtype: torch.dtype) -> Tensor:
    shape = (_IMAGES, *star.manifest.architecture.preprocessing.input_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def _logits(network: nn.Module, state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """The logits of a network in float64."""
    precise, _ = copy_module(network, _to_float64)
    precise.load_state_dict(dict(state))
    precise.eval()
    with torch.inference_mode():
        return torch.cat([precise(image) for image in torch.split(images, 1)])  # one by one, for large images


def _to_float64(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor.clone()
