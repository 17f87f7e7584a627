"""Decoded images in one file, which all processes of a machine map, and all runs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from starzoo.files import make_room

__all__ = ["PixelFile"]

_CHECKSUM_BYTES = 8


class PixelFile:
    """A sparse file of a checksum for each image and then all pixels, filled as images are decoded.

    A checksum is that of an image as it is stored and of its pixels, and is written after them. So an image is trusted
    whatever a killed process, a power cut or another data set left in the file, and several processes may fill it.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._start = path, _CHECKSUM_BYTES * shape[0]
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "rb+", buffering=0)
        os.utime(path)  # the least recently used files are removed first
        if os.fstat(self._file.fileno()).st_size < self._start + int(np.prod(shape)):
            os.truncate(self._file.fileno(), self._start + int(np.prod(shape)))
        self.checksums = torch.from_numpy(np.memmap(self._file, np.int64, "r+", 0, shape[:1]))  # 0: not decoded yet
        self.pixels = torch.from_numpy(np.memmap(self._file, np.uint8, "r+", self._start, shape))

    def has_room(self, images: int) -> bool:
        """Whether the disk takes the pixels of some more images; other files may be removed for it."""
        return make_room(self.path.parent, images * self.pixels[0].numel(), keep=self.path)

    def holds(self, number: int, stored: bytes) -> bool:
        """Whether the file has the pixels of an image that is stored as these bytes."""
        checksum = int(self.checksums[number])
        return checksum != 0 and checksum == _checksum(stored, self.pixels[number])

    def write(self, number: int, stored: bytes, pixels: Tensor) -> None:
        """Write an image; not through the map, where a full disk would end the process by a signal."""
        self._write_at(self._start + number * pixels.numel(), pixels.numpy().tobytes())
        checksum = _checksum(stored, pixels)
        self._write_at(number * _CHECKSUM_BYTES, np.int64(checksum).tobytes())

    def _write_at(self, offset: int, content: bytes) -> None:
        while content:
            written = os.pwrite(self._file.fileno(), content, offset)
            offset, content = offset + written, content[written:]


def _checksum(stored: bytes, pixels: Tensor) -> int:
    digest = hashlib.sha256(stored)
    digest.update(pixels.contiguous().numpy().data)
    return int.from_bytes(digest.digest()[:_CHECKSUM_BYTES], "little", signed=True) or 1
