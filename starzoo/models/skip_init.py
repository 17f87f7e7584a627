"""Build modules without initializing their parameters.

A trace looks at the values of buffers, since a constant one ties nothing, but not at those of weights. Building on the
meta device would lose both, and some networks cannot be built there at all, since they compute with their own tensors.
Here a network is built as usual, and only what would write into a parameter is left out. The operating system gives
memory to what is written, so that a network of five billion parameters takes a few megabytes. A network that is built
to be loaded needs no random start either.
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
    """Within this context, modules are built with parameters that hold whatever lay in their memory."""

    def __init__(self, *, loading: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._loading = loading
        self._storages: dict[int, Tensor] = {}  # the tensors keep their storages alive, so that no id is used twice

    def __enter__(self) -> Self:
        """Begin to watch parameters."""
        self._hook = register_module_parameter_registration_hook(self._note)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop watching."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._hook.remove()
        self._storages.clear()

    def _note(self, module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            if self._loading and _storage(parameter) not in self._storages and parameter.is_floating_point():
                parameter.data.fill_(math.nan)
            self._storages[_storage(parameter)] = parameter

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run every operator but those that write into a parameter."""
        blank = func._schema.is_mutable and args and isinstance(args[0], Tensor) and _storage(args[0]) in self._storages
        if blank and not (self._loading and func is torch.ops.aten.copy_.default):
            return args[0]
        return func(*args, **(kwargs or {}))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
