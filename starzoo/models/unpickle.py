"""Copy the tensors of a checkpoint to a safetensors file: `python -m starzoo.models.unpickle SOURCE TARGET`.

The architecture and arguments that a training saved beside the weights become metadata of the file.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["EMA", "TRAINING", "main", "state_dict_of"]

EMA, TRAINING = "ema", "training"
"""Keys of the metadata: whether the weights are an exponential moving average, and the arguments of the training."""

_SAFE_TORCH = (2, 10)  # the first release whose weights_only loader has no known way around it
_COPIES, _WORKING_BYTES = 8, 1_500_000_000
_AVERAGED = ("state_dict_ema", "model_ema")
_WRAPPERS = ("state_dict", "model", "model_state_dict")


def main(source: Path, target: Path, *, ema: bool = True) -> str | None:
    """Convert one file; return why that is not possible."""
    import torch
    from safetensors.torch import save_file

    version = torch.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < _SAFE_TORCH:
        return f"torch {version} is too old to open a stranger's pickle"
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # of timm's train.py
            checkpoint = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if types := _unsafe_types(source):
            return f"it holds {types}, which could run code"
        return "it is damaged, or holds other objects than tensors"
    except Exception as error:  # noqa: BLE001  a stranger's file may fail in any way
        reason = (str(error).splitlines() or ["no reason given"])[0]
        if isinstance(error, MemoryError) or "allocate" in reason:
            return "it takes more memory than its size explains"
        return f"{type(error).__name__}: {'it is damaged' if 'weights_only' in reason else reason}"
    state, averaged = state_dict_of(checkpoint, ema=ema)
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        return "it holds something else than named tensors"
    size, needed = source.stat().st_size, sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if needed > 4 * size:  # views of a small storage may claim any size
        return f"its tensors take {needed:,} bytes, but the file has {size:,}"
    metadata = {"format": "pt", EMA: json.dumps(averaged), TRAINING: json.dumps(_training_arguments(checkpoint))}
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, target, metadata)
    return None


def state_dict_of(checkpoint: Any, *, ema: bool = True) -> tuple[dict[str, Any], bool]:
    """Return the state dict in a checkpoint, and whether it is an exponential moving average."""
    averaged = False
    for key in (*(_AVERAGED if ema else ()), *_WRAPPERS):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint, averaged = checkpoint[key], averaged or key in _AVERAGED
    state = {str(name): value for name, value in checkpoint.items()} if isinstance(checkpoint, dict) else {}
    return state, averaged


def _training_arguments(checkpoint: Any) -> dict[str, Any]:
    """Return the arguments that timm's train.py saves, and the architecture as `model`, as far as they are JSON."""
    if not isinstance(checkpoint, dict):
        return {}
    saved = checkpoint.get("args")
    saved = vars(saved) if isinstance(saved, argparse.Namespace) else saved
    arguments = {str(name): value for name, value in saved.items()} if isinstance(saved, Mapping) else {}
    if isinstance(checkpoint.get("arch"), str):
        arguments.setdefault("model", checkpoint["arch"])
    return {name: value for name, value in arguments.items() if _is_json(value)}


def _is_json(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 64 and all(map(_is_json, value))
    if isinstance(value, dict):
        return len(value) <= 64 and all(isinstance(name, str) and _is_json(item) for name, item in value.items())
    return value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 200)


def _unsafe_types(source: Path) -> str:
    """Return the types of a checkpoint that torch refuses to load."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        names = sorted(get_unsafe_globals_in_checkpoint(source))
    except Exception:  # noqa: BLE001  an old or a damaged file has no list of them
        return ""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _limit_memory(source: Path) -> None:
    """Limit the memory of this process to what the tensors of a file, and copies of them, need."""
    if sys.platform == "linux":  # elsewhere no limit counts memory rather than addresses
        import resource

        limit = _COPIES * source.stat().st_size + _WORKING_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    _limit_memory(Path(sys.argv[1]))
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), ema="--no-ema" not in sys.argv[3:]))
