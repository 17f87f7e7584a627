"""starzoo: one star model for a zoo of independently trained timm models.

The public names below are imported on first use, so that `import starzoo` stays instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starzoo.symmetry.permutation import Permutation as Permutation
    from starzoo.architecture import Architecture as Architecture
    from starzoo.architecture import Preprocessing as Preprocessing
    from starzoo.config import RunConfig as RunConfig
    from starzoo.config import load_config as load_config
    from starzoo.errors import StarzooError as StarzooError

__version__ = "0.1.0"

_HOME = {
    "Architecture": "starzoo.architecture",
    "Permutation": "starzoo.symmetry.permutation",
    "Preprocessing": "starzoo.architecture",
    "RunConfig": "starzoo.config",
    "StarzooError": "starzoo.errors",
    "load_config": "starzoo.config",
}

__all__ = sorted(["__version__", *_HOME])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'starzoo' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
