"""Read single image files for a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from starzoo.data.decoding import image_loader, normalize
from starzoo.data.preprocessing import Preprocessing
from starzoo.data.records import ImageFile
from starzoo.errors import UsageError

__all__ = ["read_images"]


def read_images(files: Sequence[str | Path], preprocessing: Preprocessing) -> Tensor:
    """Read image files into one batch, with the preprocessing of the weights."""
    if not files:
        raise UsageError("IMAGE", "no image is given", hint="name one image file or more")
    for file in files:
        if not Path(file).is_file():  # reading a device might never end
            raise UsageError(str(file), "no such file", hint="name image files, not folders")
    read = image_loader(preprocessing, str(files[0]))
    pixels = [read(ImageFile(str(file), Path(file).read_bytes())) for file in files]
    return normalize(torch.stack(pixels), preprocessing)
