"""A program that copies the tensors of a checkpoint to a safetensors file: `python -m starzoo.models.unpickle FROM TO`.

What a training noted beside the weights, its architecture and arguments, comes along in the file's metadata.
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
"""Keys of the metadata: whether the weights are an exponential moving average, and what the training noted."""

_SAFE_TORCH = (2, 10)  # the first release whose weights_only loader has no known way around it
_COPIES, _WORKING_BYTES = 8, 1_500_000_000
_AVERAGED = ("state_dict_ema", "model_ema")
_WRAPPERS = ("state_dict", "model", "model_state_dict")


def main(source: Path, target: Path, *, ema: bool = True) -> str | None:
    """Convert one file."""
    import torch
    from safetensors.torch import save_file

    version = torch.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < _SAFE_TORCH:
        return f"torch {version} is too old to open a stranger's pickle"
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # in which timm's training keeps its arguments
            loaded = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        types = _other_types(source)
        return (
            f"it holds {types}, which could run code" if types else "it is damaged, or holds other objects than tensors"
        )
    except Exception as error:  # noqa: BLE001  a stranger's file may fail in any way
        reason = (str(error).splitlines() or ["no reason given"])[0]
        if isinstance(error, MemoryError) or "allocate" in reason:
            return "it takes more memory than its size explains"
        return f"{type(error).__name__}: {'it is damaged' if 'weights_only' in reason else reason}"
    state, averaged = state_dict_of(loaded, ema=ema)
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        return "it holds something else than named tensors"
    size, asked = source.stat().st_size, sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if asked > 4 * size:  # views of a small storage may claim any size
        return f"its tensors take {asked:,} bytes, but the file has {size:,}"
    metadata = {"format": "pt", EMA: json.dumps(averaged), TRAINING: json.dumps(_training_of(loaded))}
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, target, metadata)
    return None


def state_dict_of(loaded: Any, *, ema: bool = True) -> tuple[dict[str, Any], bool]:
    """The table of tensors in what was saved, which may be wrapped with other things of a training run."""
    averaged = False
    for key in (*(_AVERAGED if ema else ()), *_WRAPPERS):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded, averaged = loaded[key], averaged or key in _AVERAGED
    return ({str(name): value for name, value in loaded.items()} if isinstance(loaded, dict) else {}), averaged


def _training_of(loaded: Any) -> dict[str, Any]:
    """What timm's train.py notes: the architecture, and the arguments as far as JSON has them."""
    if not isinstance(loaded, dict):
        return {}
    arguments = loaded.get("args")
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    known = {str(name): value for name, value in arguments.items()} if isinstance(arguments, Mapping) else {}
    if isinstance(loaded.get("arch"), str):
        known.setdefault("model", loaded["arch"])
    return {name: value for name, value in known.items() if _is_json(value)}


def _is_json(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 64 and all(map(_is_json, value))
    if isinstance(value, dict):
        return len(value) <= 64 and all(isinstance(name, str) and _is_json(each) for name, each in value.items())
    return value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 200)


def _other_types(source: Path) -> str:
    """The types of a checkpoint that torch does not open without being told to."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        names = sorted(get_unsafe_globals_in_checkpoint(source))
    except Exception:  # noqa: BLE001  an old or a damaged file does not say
        return ""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _limit_memory(source: Path) -> None:
    """Let this process take no more memory than the tensors of a file, and copies of them, need."""
    if sys.platform == "linux":  # elsewhere no limit counts memory rather than addresses
        import resource

        limit = _COPIES * source.stat().st_size + _WORKING_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    _limit_memory(Path(sys.argv[1]))
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), ema="--no-ema" not in sys.argv[3:]))
