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
from starzoo.models.safetensors_header import TensorInfo, check_tensors, check_types, read_header
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
    header: Mapping[str, TensorInfo], stated: TimmConfig, architecture: Architecture, subject: str
) -> None:
    """Make sure, before a weight is read, that timm can load the tensors of a file into an architecture."""
    import torch

    tensors = _unwrap(header, architecture)
    check_types(tensors, architecture.network, subject)
    try:
        check_tensors(tensors, architecture.network, subject)
    except UntrustedInputError as error:  # unless timm renames, cuts or resamples them
        shapes = {
            name: torch.empty(info.shape, dtype=getattr(torch, _DTYPES[info.dtype]), device="meta")
            for name, info in tensors.items()
        }
        try:
            stated.load(shapes, subject, meta=True)
        except UntrustedInputError as refused:
            # A filter that looks at values can only be asked when they are there; they fill at least a part of it.
            shapes_of = ((info.shape for info in header.values()), architecture.network.shapes.values())
            stored, needed = (sum(map(math.prod, each)) for each in shapes_of)
            if "meta" not in refused.message or needed > _GROWTH * stored:
                raise error from refused


def load_weights(path: Path, stated: TimmConfig, architecture: Architecture, subject: str) -> dict[str, Tensor]:
    """Load a safetensors file as timm loads it for `pretrained=True`, after a strict pass over its header."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = read_header(path, subject)
    check_header(header, stated, architecture, subject)  # before memory is taken for what config.json describes
    try:
        tensors: dict[str, Tensor] = load_file(path, device="cpu")
    except SafetensorError as error:
        raise UntrustedInputError(
            subject, f"cannot be read: {error}", hint="download or write the file again"
        ) from error
    state = stated.load(_unwrap(tensors, architecture, subject), subject)
    _check_values(state, tensors, subject)
    return state


def _unwrap(tensors: Mapping[str, Value], architecture: Architecture, subject: str = "") -> dict[str, Value]:
    """Take off what wrappers put in front of every name (`module.`, `_orig_mod.`, `model.`); say so for a subject."""
    known, prefix, found = architecture.network.shapes, "", dict(tensors)
    while found and not any(name in known for name in found):
        [(first, count)] = Counter(name.partition(".")[0] for name in found).most_common(1)
        inner = {name.removeprefix(f"{first}."): each for name, each in found.items() if name.startswith(f"{first}.")}
        needed = (name for name in known if not name.endswith("num_batches_tracked"))
        if count < len(found) and not all(name in inner for name in needed):
            break  # a module of Lightning may hold more than the network, which must be complete then
        prefix, found = f"{prefix}{first}.", inner
    if not any(name in known for name in found):
        return dict(tensors)
    if prefix and subject:
        rest = len(tensors) - len(found)
        more = f"; {pluralize(rest, 'other tensor')} left out" if rest else ""
        _logger.warning("%s: every name begins with %r, which is taken off%s", subject, prefix, more)
    return found


def _check_values(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], subject: str) -> None:
    """Refuse what no training leaves: numbers that are not finite, negative variances, parameters without a tensor."""
    import torch

    damaged = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if damaged:
        for name, tensor in tensors.items():
            if bad := int((~torch.isfinite(tensor)).sum()):
                raise UntrustedInputError(
                    subject,
                    f"tensor {name!r} holds NaN or infinity in {bad:,} of {pluralize(tensor.numel(), 'number')}",
                    hint="the training of this model diverged, or the file is damaged: use another one",
                )
        raise UntrustedInputError(
            subject,
            f"missing tensors ({len(damaged)}): {', '.join(damaged[:5])}",
            hint="config.json and weights do not belong together",
        )
    for name, tensor in state.items():
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise UntrustedInputError(
                subject,
                f"tensor {name!r} holds negative variances ({pluralize(int((tensor < 0).sum()), 'time')})",
                hint="these cannot be batch-norm statistics: use another model",
            )
