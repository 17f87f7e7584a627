"""Decide what of a stranger's config.json may reach timm: no loader, no file, no value that is not small and plain."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any, NoReturn

from starzoo.errors import UntrustedInputError

__all__ = ["check_arguments", "check_pretrained", "refuse"]

_INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")  # no "random": only for training
_CROP_MODES = ("center", "squash", "border")
_MAX_NUMBER = 65_536
_MAX_CLASSES = 1_000_000


def refuse(subject: str, reason: str, hint: str = "") -> NoReturn:
    """Refuse a config.json."""
    hint = hint or "export the model again with timm.models.save_for_hf, or ask its author to"
    raise UntrustedInputError(subject, f"config.json: {reason}", hint=hint)


def check_arguments(arguments: Mapping[str, Any], subject: str) -> None:
    """Refuse arguments of a network that are not plain, or that choose a loader."""
    for key, value in arguments.items():
        if key in _reserved_arguments():
            refuse(subject, f"model_args.{key} is not allowed")
        if not _is_plain(value) or not _is_plain(key):
            refuse(subject, f"model_args.{key[:60]} has the value {str(value)[:60]}")


def check_pretrained(pretrained: Mapping[str, Any], subject: str) -> None:
    """Refuse loaders, impossible preprocessing and impossible classes."""
    for key in pretrained:
        if key not in _pretrained_keys():
            refuse(subject, f"pretrained_cfg.{key[:60]} is not allowed")
    file = pretrained.get("hf_hub_filename")
    if file is not None and (not isinstance(file, str) or ".." in file or file.startswith("/")):
        refuse(subject, f"pretrained_cfg.hf_hub_filename {str(file)[:60]!r} is not a file of the repository")
    if pretrained.get("custom_load") == "hf":  # any other value loads nothing else from a folder or the Hub
        refuse(subject, "pretrained_cfg.custom_load 'hf' asks for another loader")
    allowed: dict[str, Callable[[Any], bool]] = {
        "input_size": lambda value: _are_numbers(value, int, 1, 16_384) and len(value) == 3,
        "mean": lambda value: _are_numbers(value, (int, float), -1e6, 1e6),
        "std": lambda value: _are_numbers(value, (int, float), 1e-9, 1e6),
        "interpolation": lambda value: value in _INTERPOLATIONS,
        "crop_mode": lambda value: value in _CROP_MODES,
        "crop_pct": lambda value: _are_numbers([value], (int, float), 0.01, 10),
        "num_classes": lambda value: type(value) is int and 0 <= value <= _MAX_CLASSES,
    }
    for key, is_allowed in allowed.items():
        value, section = pretrained.get(key), "" if key == "num_classes" else "pretrained_cfg."
        if key in pretrained and not is_allowed(value) and (value is not None or key == "num_classes"):
            refuse(subject, f"{section}{key} is {str(value)[:60]}")


@cache
def _reserved_arguments() -> frozenset[str]:
    """Arguments that timm's builders take themselves: they choose a loader or a file, not a network."""
    import timm

    builders = (timm.create_model, timm.models.build_model_with_cfg)
    own = {name for builder in builders for name in inspect.signature(builder).parameters} - {"kwargs"}
    return frozenset({*own, "device", "dtype", "feature_cls", "features_only", "out_indices", "pruned"})


@cache
def _pretrained_keys() -> frozenset[str]:
    from timm.models import PretrainedCfg

    return frozenset(field.name for field in fields(PretrainedCfg)) - {"state_dict"}  # which would be weights


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is a bounded number, a short word, or a small list or table of such."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return depth < 3 and len(value) <= 64 and all(_is_plain(item, depth + 1) for item in value)
    if isinstance(value, str):
        return len(value) <= 60 and not set("/\\:") & set(value)
    return value is None or (isinstance(value, bool | int | float) and abs(value) <= _MAX_NUMBER)


def _are_numbers(value: Any, kind: type | tuple[type, ...], low: float, high: float) -> bool:
    return (
        isinstance(value, list | tuple)
        and 1 <= len(value) <= 64
        and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)
        and all(low <= item <= high for item in value)
    )
