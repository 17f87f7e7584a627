"""Build modules without initializing their parameters.

A trace needs the values of buffers, since a constant one ties nothing, but not those of weights. The meta device has
neither, and some networks cannot be built on it, since they compute with their own tensors. Here a network is built as
usual, without the operators that write into a parameter. The operating system allocates memory when it is written, so
that a network of five billion parameters takes a few megabytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["SkipInit"]


class SkipInit(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which modules are built with uninitialized parameters; with `loading`, NaN until they are loaded."""

    def __init__(self, *, loading: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._loading = loading
        self._storages: dict[int, Tensor] = {}  # the tensors keep their storages alive, so that no id is used twice

    def __enter__(self) -> Self:
        """Register every parameter from now on."""
        self._hook = register_module_parameter_registration_hook(self._register)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop registering."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._hook.remove()
        self._storages.clear()

    def _register(self, module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            if self._loading and _storage(parameter) not in self._storages and parameter.is_floating_point():
                parameter.data.fill_(math.nan)
            self._storages[_storage(parameter)] = parameter

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run every operator but those that write into a parameter."""
        of_parameter = args and isinstance(args[0], Tensor) and _storage(args[0]) in self._storages
        loads = self._loading and func is torch.ops.aten.copy_.default
        if of_parameter and func._schema.is_mutable and not loads:
            return args[0]
        return func(*args, **(kwargs or {}))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
