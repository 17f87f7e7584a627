"""Corrupted images (Hendrycks and Dietterich 2019), to measure how predictions hold under noise, blur and weather."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from starzoo.errors import UsageError

if TYPE_CHECKING:
    from starzoo.data.split import Split

__all__ = ["CORRUPTIONS", "SEVERITIES", "corrupt_split"]

CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "defocus_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog"),
    *("brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""All but impulse noise and glass blur, whose random numbers cannot be seeded."""
SEVERITIES = range(1, 6)
_SMALLEST = 32  # pixels


def corrupt_split(split: Split, images: int, seed: int) -> Split:
    """Return images of a split in every corruption at every severity, in this order, each made by its own seed.

    They are corrupted at the size and crop in which the models see them.

    Raises:
        UsageError: The library is missing, or the images are smaller than it can take.
    """
    from datasets import Dataset

    from starzoo.data.records import RawSplit

    rows = split.sample_indices(images, seed)
    pixels = split.pixels[rows].numpy()
    height, width = pixels.shape[1:3]
    if min(height, width) < _SMALLEST:
        problem = f"images have {width} x {height} pixels, and corruptions need {_SMALLEST}"
        raise UsageError("evaluate.corruptions", problem, hint="leave --corruptions out")
    labels = split.labels[rows].repeat(len(CORRUPTIONS) * len(SEVERITIES)).numpy()
    contents = [
        _corrupt(image, name, severity, [seed, row, number, severity])
        for number, name in enumerate(CORRUPTIONS)
        for severity in SEVERITIES
        for row, image in zip(rows.tolist(), pixels, strict=True)
    ]
    records = RawSplit(
        dataset=f"{split.pixels.records.dataset} (corrupted)",
        name=split.name,
        rows=Dataset.from_dict({"image": contents}),
        image_column="image",
        labels=labels,
        numbers=np.arange(len(labels)),
    )
    return split.uncropped(records)


def _corrupt(pixels: np.ndarray, name: str, severity: int, key: list[int]) -> bytes:
    """Return an image of shape (height, width, channels), corrupted, as a PNG."""
    try:
        from imagecorruptions import corrupt  # type: ignore[import-untyped]
    except ImportError as error:
        hint = "pip install 'starzoo[corruptions]'"
        raise UsageError("evaluate.corruptions", "needs a package that is not installed", hint=hint) from error
    channels, state = pixels.shape[2], np.random.get_state()
    np.random.seed(key)
    try:
        found = corrupt(np.repeat(pixels, 3, axis=2) if channels == 1 else pixels, severity, name)
    finally:
        np.random.set_state(state)
    image = Image.fromarray(np.asarray(found, dtype=np.uint8))
    content = BytesIO()
    (image.convert("L") if channels == 1 else image).save(content, "PNG")
    return content.getvalue()
