"""Strict checks of a safetensors header, before any weight is loaded.

The file may come from a stranger: everything that is not exactly in order is refused with a reason, without torch.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starzoo.errors import UntrustedInputError
from starzoo.files import open_file
from starzoo.models.network import Network
from starzoo.strict_json import parse_json
from starzoo.text import pluralize

__all__ = [
    "HEADER_LIMIT",
    "MISMATCH",
    "TENSOR_LIMIT",
    "TensorInfo",
    "check_tensors",
    "check_types",
    "header_length",
    "parse_header",
    "read_header",
    "stored_dtype",
]

HEADER_LIMIT = 25_000_000
"""Bytes of a safetensors header; the Hub's own parser stops there too."""

TENSOR_LIMIT = 20_000
"""Tensors of a file; the largest models of timm have a few thousand."""

MISMATCH = "config.json and weights do not belong together"
"""The hint where each file may be in order."""

_DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "BOOL": 1}
_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_FLOATS = frozenset(_DTYPE_NAMES)
_COUNTER = "num_batches_tracked"  # no forward pass in evaluation reads it
_LFS_POINTER = b"version https://git-lfs"
_SHOWN_NAMES = 5
_DAMAGED = "download or write the file again"


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a safetensors header.

    Attributes:
        dtype: The element type by safetensors' name, for example `F32`.
        shape: The length of every axis.
        start: First byte, counted from the end of the header.
        end: One past the last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path, subject: str = "", limit: int = TENSOR_LIMIT) -> dict[str, TensorInfo]:
    """Read the header of a safetensors file without touching its weights."""
    subject = subject or str(path)
    with open_file(path, inside=[path.parent], subject=subject) as file:
        size = os.fstat(file.fileno()).st_size
        length = header_length(file.read(len(_LFS_POINTER)), size, subject)
        file.seek(8)
        return parse_header(file.read(length), size - 8 - length, subject, limit)


def header_length(start: bytes, size: int, subject: str) -> int:
    """Return the length of a safetensors header, checked before it is read."""
    if start.startswith(_LFS_POINTER):
        hint = "run `git lfs pull`, or pull it from the Hub"
        raise UntrustedInputError(subject, "is a Git LFS pointer, not the weights", hint=hint)
    if len(start) < 8:
        raise UntrustedInputError(subject, f"is truncated: {pluralize(size, 'byte')}", hint=_DAMAGED)
    length = int.from_bytes(start[:8], "little")
    if not 2 <= length <= HEADER_LIMIT:
        hint = f"2 to {HEADER_LIMIT:,} are allowed"
        raise UntrustedInputError(subject, f"claims a header of {length:,} bytes", hint=hint)
    if 8 + length > size:
        raise UntrustedInputError(subject, f"is truncated: {size:,} bytes end inside the header", hint=_DAMAGED)
    return length


def parse_header(header: bytes, data_size: int, subject: str, limit: int = TENSOR_LIMIT) -> dict[str, TensorInfo]:
    """Check a safetensors header entry by entry."""
    entries = parse_json(header, f"{subject}: the header")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UntrustedInputError(subject, "has metadata that is no table of texts", hint=_DAMAGED)
    if len(entries) > limit:
        raise UntrustedInputError(subject, f"names {len(entries):,} tensors", hint=f"at most {limit:,} are read")
    tensors = {name: _tensor_info(name, entry, subject) for name, entry in entries.items()}
    end = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if gap := info.start - end:
            problem = "overlaps another tensor" if gap < 0 else f"leaves {pluralize(gap, 'byte')} unused"
            hint = "the file is damaged or hostile: download it again"
            raise UntrustedInputError(subject, f"tensor {name!r} {problem}", hint=hint)
        end = info.end
    if end > data_size:
        raise UntrustedInputError(subject, f"is truncated: {data_size:,} of {end:,} weight bytes", hint=_DAMAGED)
    if end < data_size:
        unused = pluralize(data_size - end, "byte")
        raise UntrustedInputError(subject, f"has {unused} after the last tensor", hint=_DAMAGED)
    return tensors


def check_tensors(header: Mapping[str, TensorInfo], network: Network, subject: str) -> None:
    """Compare a header with the tensors of a network; batch norm's counters do not matter."""
    differences = {
        "missing tensors": [name for name in network.shapes if name not in header and not name.endswith(_COUNTER)],
        "tensors that the architecture does not have": [name for name in header if name not in network.shapes],
        "tensors of another shape": [
            f"{name} {info.shape} instead of {tuple(network.shapes[name])}"
            for name, info in header.items()
            if name in network.shapes and info.shape != tuple(network.shapes[name]) and not name.endswith(_COUNTER)
        ],
    }
    renamed = _renamed_tensor(header, network.shapes)
    hint = f"{renamed[0]!r} looks like {renamed[1]!r}: rename it" if renamed else MISMATCH
    for problem, names in differences.items():
        _refuse_any(subject, problem, names, hint)


def check_types(header: Mapping[str, TensorInfo], network: Network, subject: str) -> None:
    """Make sure that no weight is stored in a type that does not hold weights."""
    weights = [name for name in header if name in network.shapes and not name.endswith(_COUNTER)]
    wrong = [name for name in weights if (header[name].dtype in _FLOATS) == (name in network.integers)]
    names = [f"{name} {header[name].dtype}" for name in wrong]
    _refuse_any(subject, "tensors of a type that cannot hold them", names, MISMATCH)


def stored_dtype(header: Mapping[str, TensorInfo]) -> str:
    """Return the type that most floating-point tensors of a file have, by PyTorch's name."""
    dtypes = Counter(_DTYPE_NAMES[info.dtype] for info in header.values() if info.dtype in _FLOATS)
    return dtypes.most_common(1)[0][0] if dtypes else "unknown"


def _refuse_any(subject: str, problem: str, names: Sequence[str], hint: str) -> None:
    if names:
        shown = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
        raise UntrustedInputError(subject, f"{problem} ({len(names)}): {shown}", hint=hint)


def _renamed_tensor(header: Mapping[str, TensorInfo], shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, str] | None:
    """Return a tensor of the file and the one of the network that it probably is, for example `linear` and `fc`."""
    unknown = {name: info.shape for name, info in header.items() if name not in shapes}
    for name, shape in shapes.items():
        if name not in header:
            ending = name.rpartition(".")[2]
            alike = [key for key in unknown if unknown[key] == tuple(shape) and key.rpartition(".")[2] == ending]
            if len(alike) == 1:
                return alike[0], name
    return None


def _tensor_info(name: str, entry: Any, subject: str) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)], **rest} if not rest:
            pass
        case _:
            problem = f"tensor {name!r} has no proper dtype, shape and data_offsets"
            raise UntrustedInputError(subject, problem, hint=_DAMAGED)
    if dtype not in _DTYPE_BYTES:
        hint = "float32, float16 and bfloat16 weights are read"
        raise UntrustedInputError(subject, f"tensor {name!r} has the type {dtype}", hint=hint)
    if not all(type(length) is int and length >= 0 for length in shape) or len(shape) > 8:
        problem = f"tensor {name!r} has the impossible shape {str(shape)[:60]}"
        raise UntrustedInputError(subject, problem, hint=_DAMAGED)
    if not 0 <= start <= end or end - start != math.prod(shape) * _DTYPE_BYTES[dtype]:
        problem = f"tensor {name!r} has offsets {start} to {end} that do not fit its shape {shape}"
        raise UntrustedInputError(subject, problem, hint=_DAMAGED)
    return TensorInfo(dtype, tuple(shape), start, end)
