"""Small pictures as files, each with pixels of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

_seeds = itertools.count(10**6)


def paint(seed: int | None = None, size: tuple[int, int] = (8, 8)) -> Image.Image:
    rng = np.random.default_rng(next(_seeds) if seed is None else seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png() -> bytes:
    return encode(paint())


def write_pictures(root: Path, folders: Mapping[str, int] | Iterable[str], each: int = 3, suffix: str = ".png") -> Path:
    """Write some pictures, all different, into each of some folders below `root`."""
    counts = folders if isinstance(folders, Mapping) else dict.fromkeys(folders, each)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (root / folder / f"{number:03}{suffix}").write_bytes(png())
    return root
