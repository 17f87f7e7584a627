"""The permutation symmetries of a network, found by tracing it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starzoo.symmetry.inference import infer as infer
    from starzoo.symmetry.inference import infer_activations as infer_activations
    from starzoo.symmetry.permutation import Permutation as Permutation
    from starzoo.symmetry.spec import PermutationGroup as PermutationGroup
    from starzoo.symmetry.spec import PermutationSpec as PermutationSpec
    from starzoo.symmetry.verification import Verification as Verification
    from starzoo.symmetry.verification import verify as verify

_HOME = {
    "Permutation": "permutation",
    "PermutationGroup": "spec",
    "PermutationSpec": "spec",
    "Verification": "verification",
    "infer": "inference",
    "infer_activations": "inference",
    "verify": "verification",
}

__all__ = ["Permutation", "PermutationGroup", "PermutationSpec", "Verification", "infer", "infer_activations", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
