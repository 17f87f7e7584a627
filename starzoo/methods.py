"""The methods of alignment, by name: what the configuration and the command line both take."""

from __future__ import annotations

from typing import Literal

__all__ = ["Method"]

Method = Literal[
    "weight",
    "unit-norm",
    "balanced",
    "activation",
    "activation-gradient",
    "activation-weight",
    "cycle",
    "activation-cycle",
    "auto",
]
