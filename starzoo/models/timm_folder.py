"""Read and write folders in timm format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from starzoo.errors import UntrustedInputError
from starzoo.files import atomic_write, open_file, write_text
from starzoo.hub.listing import describe_missing_file
from starzoo.models.architecture import Architecture
from starzoo.models.timm_config import TimmConfig
from starzoo.models.timm_weights import load_weights
from starzoo.strict_json import read_json

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "check_files",
    "find_weights",
    "load_state",
    "read_architecture",
    "save_tensors",
    "save_timm_folder",
    "sha256_file",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def save_timm_folder(
    folder: Path, architecture: Architecture, state: Mapping[str, Tensor], extra_config: Mapping[str, Any] | None = None
) -> None:
    """Write a model so that plain timm loads it bit for bit.

    Other files of an existing folder stay. The weights appear before config.json, each by one rename, so that an
    interrupted call leaves neither a partial file nor a new folder that looks complete.
    """
    config = architecture.config(**(extra_config or {}))
    tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
    save_tensors(folder / WEIGHTS_FILE, tensors, metadata={"format": "pt"})
    write_text(folder / CONFIG_FILE, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as draft:
        save_file(content, draft, metadata=dict(metadata) if metadata else None)


def read_architecture(folder: Path, subject: str = "", *, image_size: int | None = None) -> Architecture:
    """Read a folder's config.json."""
    return Architecture.from_config(read_json(folder / CONFIG_FILE), subject or str(folder), image_size=image_size)


def load_state(
    folder: Path, architecture: Architecture, subject: str = "", *, image_size: int | None = None
) -> dict[str, Tensor]:
    """Load a folder's weights as plain timm loads them, after a strict pass over their header."""
    subject, path = subject or str(folder), find_weights(folder)
    config = TimmConfig.parse(read_json(folder / CONFIG_FILE), subject).at_size(image_size)
    return load_weights(path, config, architecture, f"{subject}: {path.name}")


def find_weights(folder: Path) -> Path:
    """Return the safetensors file that timm loads from a folder."""
    others = (file for file in sorted(folder.glob("*.safetensors")) if file.name != "permutations.safetensors")
    preferred = (folder / name for name in (WEIGHTS_FILE, "open_clip_model.safetensors"))
    return next((file for file in (*preferred, *others) if file.is_file()), folder / WEIGHTS_FILE)


def check_files(folder: Path, subject: str) -> None:
    """Make sure that a folder has the two files of a model."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    if CONFIG_FILE not in sizes:
        problem, hint = describe_missing_file(CONFIG_FILE, sizes)
    elif find_weights(folder).is_file():
        return
    elif pickles := sorted(name for name in sizes if name.endswith((".bin", ".pth", ".pt"))):
        problem = f"holds its weights only as {pickles[0]}, which could run code when opened"
        hint = "save them as model.safetensors with safetensors.torch.save_file, on an isolated machine"
    else:
        problem, hint = describe_missing_file(WEIGHTS_FILE, sizes)
    raise UntrustedInputError(subject, problem, hint=hint)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
