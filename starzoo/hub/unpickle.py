"""A program that copies the tensors of a pickle to a safetensors file: `python -m starzoo.hub.unpickle FROM TO`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

__all__ = ["main", "state_dict_of"]

_SAFE_TORCH = (2, 10)  # the first release whose weights_only loader has no known way around it
_WRAPPERS = ("state_dict", "model", "model_state_dict")


def main(source: Path, target: Path) -> str | None:
    """Convert one file.

    Args:
        source: What `torch.save` wrote.
        target: The safetensors file to write.

    Returns:
        Why that cannot be done, or None where it is done.
    """
    import torch
    from safetensors.torch import save_file

    version = torch.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < _SAFE_TORCH:
        return f"torch {version} is too old to open a stranger's pickle"
    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  a stranger's file may fail in any way
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
    state = state_dict_of(loaded)
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        return "it holds something else than named tensors"
    size, asked = source.stat().st_size, sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if asked > 4 * size:  # views of a small storage may claim any size
        return f"its tensors take {asked:,} bytes, but the file has {size:,}"
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, target)
    return None


def state_dict_of(loaded: Any) -> dict[str, Any]:
    """The table of tensors in what was saved, which may be wrapped with other things of a training run.

    Args:
        loaded: What `torch.load` returned.

    Returns:
        The table, or an empty one.
    """
    for key in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    return {str(name): value for name, value in loaded.items()} if isinstance(loaded, dict) else {}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
