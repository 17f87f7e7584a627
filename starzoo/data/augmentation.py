"""Augmentation of training images: flips and crops of what evaluation sees, or timm's training transform.

All random numbers are functions of the seed, the epoch and the image. So a resumed run sees the same pixels, whichever
process loads them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from starzoo.config import Augmentation, DataConfig, TransformConfig
from starzoo.data.preprocessing import Preprocessing
from starzoo.data.records import ImageFile
from starzoo.errors import UsageError

__all__ = ["flip_and_crop", "read_keyed", "training_transform", "transform_key"]


def flip_and_crop(pixels: Tensor, draws: Tensor, *, crop: bool) -> Tensor:
    """Flip and, with `crop`, randomly crop all images of a batch by one gather."""
    batch, height, width, _ = pixels.shape
    rows = torch.arange(height).expand(batch, height)
    columns = torch.arange(width).expand(batch, width)
    columns = torch.where(draws[:, :1] < 0.5, columns.flip(1), columns)
    if crop:
        vertical, horizontal = height // 8, width // 8
        pixels = pad(pixels, (0, 0, horizontal, horizontal, vertical, vertical))
        rows = rows + (draws[:, 1:2] * (2 * vertical + 1)).long()
        columns = columns + (draws[:, 2:] * (2 * horizontal + 1)).long()
    return pixels[torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]


def read_keyed(read: Callable[[ImageFile], Tensor], files: Iterable[ImageFile], seeds: Iterable[int]) -> Tensor:
    """Read images by a random transform; each has its seed, and the global generators keep their state."""
    python, numpy, images = random.getstate(), np.random.get_state(), []
    with torch.random.fork_rng(devices=[]):
        try:
            for file, seed in zip(files, seeds, strict=True):
                random.seed(seed)
                np.random.seed(seed)
                torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed the GPUs, too
                images.append(read(file))
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
    return torch.stack(images)


def training_transform(config: TransformConfig, preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """Make timm's training transform; it normalizes only where random erasing follows, which acts on floats."""
    from timm.data.transforms_factory import create_transform

    try:
        transform: Any = create_transform(
            input_size=preprocessing.input_size,
            is_training=True,
            mean=preprocessing.mean,
            std=preprocessing.std,
            normalize=config.re_prob > 0,
            **config.model_dump(),
        )
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise UsageError(
            "data.transform", f"timm refuses it: {reason}", hint="see `timm.data.create_transform`"
        ) from error
    _keep_one_bit(transform)
    return transform  # type: ignore[no-any-return]


def transform_key(config: DataConfig, *augmentations: Augmentation | None) -> dict[str, Any]:
    """Return what decides the pixels of timm's training transform, where one of the augmentations is that."""
    if "timm" not in augmentations:
        return {}
    versions = {package: version(package) for package in ("pillow", "timm", "torchvision")}
    return {"transform": {**(config.transform or TransformConfig()).model_dump(mode="json"), "versions": versions}}


def _keep_one_bit(transform: Any) -> None:
    """Let timm's Posterize keep one bit where it would keep none, which Pillow refuses since version 13.

    At the highest level PosterizeIncreasing keeps 4 - 4 bits, and at the lowest Posterize 0. Before, that gave a black
    image.
    """
    from timm.data.auto_augment import posterize

    def keep_one_bit(image: Image.Image, bits: int, **options: Any) -> Image.Image:
        return posterize(image, max(1, bits), **options)  # type: ignore[no-any-return,no-untyped-call]

    for step in transform.transforms:
        policies = [getattr(step, "ops", []), *getattr(step, "policy", [])]
        for operation in (operation for policy in policies for operation in policy):
            if operation.aug_fn is posterize:
                operation.aug_fn = keep_one_bit
