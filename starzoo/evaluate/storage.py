"""What an evaluation keeps on the disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from starzoo.config import EvalConfig

__all__ = ["pixel_bytes", "prediction_bytes"]


def pixel_bytes(images: Mapping[str, int], input_size: Sequence[int]) -> int:
    """Return the bytes of all decoded images; a split of at most 256 MiB is in the memory of each process instead."""
    return sum(images.values()) * math.prod(input_size)


def prediction_bytes(
    config: EvalConfig, images: Mapping[str, int], *, classes: int, models: int, has_batch_norm: bool
) -> int:
    """Return the bytes of all predictions on some images by split; `models` are sources, held-outs and stars."""
    ends = models if has_batch_norm else 0  # with the batch-norm statistics of a path
    averages = 2 if config.bma_samples else 0
    predictors = models + 2 + ends + averages + len(config.baselines) + (config.precision != "fp32")
    return predictors * sum(images.values()) * classes * 4
