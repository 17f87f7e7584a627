"""Choices that the configuration and the command line share."""

from __future__ import annotations

from typing import Literal

__all__ = ["Method"]

Method = Literal["weights", "balanced-weights", "activations", "activations-gradients"]
