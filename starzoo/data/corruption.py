"""Corrupted images (Hendrycks and Dietterich 2019), to measure how predictions hold under noise, blur and weather."""

from __future__ import annotations

from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from starzoo.errors import UsageError

if TYPE_CHECKING:
    from starzoo.data.split import Split

__all__ = ["CORRUPTIONS", "SEVERITIES", "check_corruptions", "corrupt_split"]

Pixels = NDArray[np.uint8]

CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
_SEEDED = {"impulse_noise", "glass_blur"}  # by an argument; all others by NumPy's global state
SEVERITIES = range(1, 6)
_SMALLEST = 32  # pixels


def check_corruptions(images: int, input_size: tuple[int, int, int]) -> None:
    """Make sure that images of this size can be corrupted, if any are asked for.

    Raises:
        UsageError: The library is missing, or the images are smaller than it can take.
    """
    if not images:
        return
    try:
        import_module("imagecorruptions")
    except ImportError as error:  # it may also lack a library of the system
        problem = f"cannot import imagecorruptions: {error}"
        raise UsageError("evaluate.corruptions", problem, hint="pip install 'starzoo[corruptions]'") from error
    if min(input_size[1:]) < _SMALLEST:
        problem = f"images have {input_size[1]} x {input_size[2]} pixels, and corruptions need {_SMALLEST}"
        raise UsageError("evaluate.corruptions", problem, hint="leave --corruptions out")


def corrupt_split(split: Split, images: int, seed: int) -> Split:
    """Return images of a split in every corruption at every severity, in this order, each made by its own seed.

    They are corrupted at the size and crop in which the models see them.
    """
    from datasets import Dataset

    from starzoo.data.records import RawSplit

    rows = split.sample_indices(images, seed)
    pixels = split.pixels[rows].numpy()
    contents = [
        _corrupt(image, name, severity, [seed, row, number, severity])
        for number, name in enumerate(CORRUPTIONS)
        for severity in SEVERITIES
        for row, image in zip(rows.tolist(), pixels, strict=True)
    ]
    labels = split.labels[rows].repeat(len(CORRUPTIONS) * len(SEVERITIES)).numpy()
    records = RawSplit(
        dataset=f"{split.pixels.records.dataset} (corrupted)",
        name=split.name,
        rows=Dataset.from_dict({"image": contents}),
        image_column="image",
        labels=labels,
        numbers=np.arange(len(labels)),
    )
    return split.uncropped(records)


def _corrupt(pixels: Pixels, name: str, severity: int, key: list[int]) -> bytes:
    """Return an image of shape (height, width, channels), corrupted, as a PNG."""
    from imagecorruptions import corrupt  # type: ignore[import-untyped]

    [seed], state = np.random.SeedSequence(key).generate_state(1), np.random.get_state()
    own = {"seed": int(seed)} if name in _SEEDED else {}
    np.random.seed(seed)
    try:
        found = corrupt(pixels, severity, name, **own).astype(np.uint8)
    finally:
        np.random.set_state(state)
    content = BytesIO()
    # A gray image is corrupted as one of three equal channels, of which noise makes three different ones.
    Image.fromarray(found[..., 0] if pixels.shape[2] == 1 else found).save(content, "PNG")
    return content.getvalue()
