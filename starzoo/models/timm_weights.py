"""Load weights as timm does, to the same bits, after a check of their header."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from starzoo.errors import UntrustedInputError
from starzoo.models.architecture import Architecture
from starzoo.models.safetensors_header import MISMATCH, TensorInfo, check_tensors, check_types, read_header
from starzoo.models.timm_config import TimmConfig
from starzoo.text import pluralize

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_header", "load_weights"]

_GROWTH = 4  # how many times as large as its file a network may be where only its values tell whether they fit
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32", "BOOL": "bool"}
_logger = logging.getLogger(__name__)

Value = TypeVar("Value")


def check_header(
    header: Mapping[str, TensorInfo], config: TimmConfig, architecture: Architecture, subject: str
) -> None:
    """Make sure, before a weight is read, that timm can load the tensors of a file into an architecture."""
    import torch

    tensors = _unwrap(header, architecture)
    check_types(tensors, architecture.network, subject)
    try:
        check_tensors(tensors, architecture.network, subject)
    except UntrustedInputError as mismatch:  # unless timm renames, cuts or resamples them
        meta_tensors = {
            name: torch.empty(info.shape, dtype=getattr(torch, _DTYPES[info.dtype]), device="meta")
            for name, info in tensors.items()
        }
        try:
            config.load(meta_tensors, subject, meta=True)
        except UntrustedInputError as error:
            # A filter that looks at values needs the values themselves, which must fill a part of the network at least.
            stored = sum(math.prod(info.shape) for info in header.values())
            needed = sum(map(math.prod, architecture.shapes.values()))
            if "meta" not in error.message or needed > _GROWTH * stored:
                raise mismatch from error


def load_weights(path: Path, config: TimmConfig, architecture: Architecture, subject: str) -> dict[str, Tensor]:
    """Load a safetensors file as timm loads it for `pretrained=True`, after a strict pass over its header."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = read_header(path, subject)
    check_header(header, config, architecture, subject)  # before memory is allocated for what config.json describes
    try:
        tensors: dict[str, Tensor] = load_file(path, device="cpu")
    except SafetensorError as error:
        hint = "download or write the file again"
        raise UntrustedInputError(subject, f"cannot be read: {error}", hint=hint) from error
    state = config.load(_unwrap(tensors, architecture, subject), subject)
    _check_values(state, tensors, subject)
    return state


def _unwrap(tensors: Mapping[str, Value], architecture: Architecture, subject: str = "") -> dict[str, Value]:
    """Strip what wrappers put in front of every name (`module.`, `_orig_mod.`, `model.`); warn about a subject."""
    shapes, prefix, stripped = architecture.shapes, "", dict(tensors)
    needed = [name for name in shapes if not name.endswith("num_batches_tracked")]
    while stripped and not any(name in shapes for name in stripped):
        [(first, count)] = Counter(name.partition(".")[0] for name in stripped).most_common(1)
        start = f"{first}."
        inner = {name.removeprefix(start): value for name, value in stripped.items() if name.startswith(start)}
        if count < len(stripped) and not all(name in inner for name in needed):
            break  # a module of Lightning may hold more than the network, which must be complete then
        prefix, stripped = prefix + start, inner
    if not any(name in shapes for name in stripped):
        return dict(tensors)
    if prefix and subject:
        rest = len(tensors) - len(stripped)
        left_out = f"; {pluralize(rest, 'other tensor')} left out" if rest else ""
        _logger.warning("%s: every name begins with %r, which is taken off%s", subject, prefix, left_out)
    return stripped


def _check_values(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], subject: str) -> None:
    """Refuse numbers that are not finite, negative variances, and parameters without a tensor."""
    import torch

    if damaged := [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]:
        for name, tensor in tensors.items():
            if count := int((~torch.isfinite(tensor)).sum()):
                numbers = pluralize(tensor.numel(), "number")
                problem = f"tensor {name!r} holds NaN or infinity in {count:,} of {numbers}"
                hint = "the training of this model diverged, or the file is damaged: use another one"
                raise UntrustedInputError(subject, problem, hint=hint)
        problem = f"missing tensors ({len(damaged)}): {', '.join(damaged[:5])}"
        raise UntrustedInputError(subject, problem, hint=MISMATCH)
    for name, tensor in state.items():
        if name.endswith("running_var") and (count := int((tensor < 0).sum())):
            problem = f"tensor {name!r} holds negative variances ({pluralize(count, 'time')})"
            hint = "these cannot be batch-norm statistics: use another model"
            raise UntrustedInputError(subject, problem, hint=hint)
