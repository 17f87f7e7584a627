"""Decode stored images safely, then apply timm's evaluation transform."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.metadata import version
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from starzoo.data.formats import image_formats
from starzoo.data.hub_datasets import warn_once
from starzoo.data.pixel_file import PixelFile
from starzoo.data.preprocessing import Preprocessing
from starzoo.data.records import ImageFile, RawSplit
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.files import cache_folder
from starzoo.parallel import available_cpus, is_torchrun

__all__ = ["DecodedImages", "decode", "image_loader", "normalize"]

_MODES = {1: "L", 3: "RGB"}
_DEEP_MODES = ("I", "F")  # Pillow clips these when it converts them to 8 bits
_MAX_PIXELS = 2 * 89_478_485  # twice Pillow's MAX_IMAGE_PIXELS: its own limit for decompression bombs
_MEMORY_BYTES = 256 * 2**20  # of a split that every process keeps in its own memory
_MOST_MEMORY_BYTES = 4 * 2**30  # the same where no file can be written
_IMAGES_PER_DECODE = 1024
_IMAGES_IN_NAME = 32
_LAYOUT = 1  # of the file, and of the arithmetic in this module
_OPENING = threading.Lock()

Result = TypeVar("Result")

_EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class DecodedImages:
    """The images of a split after timm's evaluation resize and crop, as bytes.

    An image is decoded at its first use. A small split is then kept in memory, a large one in a file that all processes
    and runs share. Images for which there is no room are decoded at each use.
    """

    def __init__(self, records: RawSplit, preprocessing: Preprocessing) -> None:
        channels, height, width = preprocessing.input_size
        self.records = records
        self.shape = (len(records), height, width, channels)
        self.is_shared = math.prod(self.shape) > _MEMORY_BYTES
        self._preprocessing = preprocessing
        self._read = image_loader(preprocessing, records.dataset)
        self._is_ready = torch.zeros(len(records), dtype=torch.bool)
        self._is_full = False

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Return the pixels of images, uint8 of shape (indices, height, width, channels)."""
        pixels = self._pixels
        return self.decode(indices) if pixels is None or not self.prepare(indices) else pixels[indices]

    def prepare(self, indices: Tensor) -> bool:
        """Decode images that are not decoded yet, and return whether there was room for all of them."""
        missing = torch.unique(indices[~self._is_ready[indices]])
        if self._pixels is not None:
            for start in range(0, len(missing), _IMAGES_PER_DECODE):
                self._prepare(missing[start : start + _IMAGES_PER_DECODE])
        return bool(self._is_ready[missing].all())

    @property
    def is_kept(self) -> bool:
        """Whether images are decoded once."""
        return self._pixels is not None and not self._is_full

    def decode(self, indices: Tensor) -> Tensor:
        """Decode images without keeping them."""
        return torch.stack(self._map(self._read, self.records.files(indices.tolist())))

    @property
    def _pixels(self) -> Tensor | None:
        with _OPENING:  # the threads of a loader come at the same time
            return self._file.pixels if self._file else self._memory

    @cached_property
    def _file(self) -> PixelFile | None:
        if not self.is_shared:
            return None
        try:
            return PixelFile(cache_folder("pixels") / self._file_name(), self.shape)
        except OSError as error:
            self._warn(error)
            return None

    @cached_property
    def _memory(self) -> Tensor | None:
        if math.prod(self.shape) > _MOST_MEMORY_BYTES:
            return None
        with torch.inference_mode(False):  # written later, too
            return torch.empty(self.shape, dtype=torch.uint8)

    def _file_name(self) -> str:
        """Hash what decides the pixels; of the images only a few, since the file has a checksum of each."""
        records, versions = self.records, [_LAYOUT, *map(version, ("pillow", "timm", "torchvision"))]
        transform = self._preprocessing.model_dump(exclude={"mean", "std"})
        digest = hashlib.sha256(repr([records.dataset, records.name, versions, transform, self.shape]).encode())
        digest.update(records.numbers.tobytes())
        for file in records.files(np.linspace(0, len(records) - 1, _IMAGES_IN_NAME).astype(int).tolist()):
            digest.update(hashlib.sha256(file.content).digest())
        return digest.hexdigest()

    def _prepare(self, rows: Tensor) -> None:
        """Decode images that are not in the file, and write them there, or into memory."""
        try:
            if self._file and not self._is_full and not self._file.has_room(len(rows)):
                raise OSError("it would take more than half of the free disk")
            if self._file and self._is_full:
                rows = rows[self._file.checksums[rows] != 0]
            if len(rows):
                self._map(self._prepare_image, rows.tolist(), self.records.files(rows.tolist()))
        except OSError as error:
            self._is_full = True
            self._warn(error)

    def _prepare_image(self, number: int, image: ImageFile) -> None:
        if self._file is None:
            assert self._memory is not None
            self._memory[number] = self._read(image)
        elif not self._file.holds(number, image.content):
            if self._is_full:
                return
            self._file.write(number, image.content, self._read(image))
        self._is_ready[number] = True

    def _map(self, work: Callable[..., Result], *items: Iterable[Any]) -> list[Result]:
        # Torchrun leaves torch a single thread of all cores; in a process of a loader that is its own number.
        is_rank = is_torchrun() and multiprocessing.parent_process() is None
        threads = available_cpus() if is_rank else torch.get_num_threads()
        if threads == 1:
            return list(map(work, *items))
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, *items))

    def _warn(self, error: OSError) -> None:
        reason, folder = error.strerror or str(error), cache_folder("pixels")
        warn_once(
            f"{self.records.dataset}: decoded images are not kept in {folder} ({reason}); each process decodes them "
            "itself (free space with starzoo doctor --clean, or set HF_ASSETS_CACHE)"
        )


def image_loader(
    preprocessing: Preprocessing, subject: str, transform: Callable[[Image.Image], Tensor] | None = None
) -> Callable[[ImageFile], Tensor]:
    """Return the function from a file to pixels: safe decoding, then a transform, timm's evaluation one by default."""
    from timm.data.transforms_factory import create_transform

    mode = _MODES.get(preprocessing.input_size[0])
    if mode is None:
        raise UsageError(
            subject,
            f"images are gray or RGB, but the model takes {preprocessing.input_size[0]} channels",
            hint="use a model with 1 or 3 input channels",
        )
    as_pixels: Callable[[Image.Image], Tensor] = transform or create_transform(
        input_size=preprocessing.input_size,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        normalize=False,
    )

    def read(file: ImageFile) -> Tensor:
        image = decode(file)
        width, height = _resized(image.size, preprocessing)
        if width * height > _MAX_PIXELS:
            raise UntrustedInputError(
                file.description,
                f"cannot be read: its {image.width} × {image.height} pixels would be resized to {width} × {height}",
                hint="repair the data set or remove the image",
            )
        with _translate_decode_errors(file):
            image = image if image.mode == mode else image.convert(mode)
        return as_pixels(image).permute(1, 2, 0)

    return read


def normalize(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Normalize pixels for a model with the arithmetic of timm, bit for bit; floats are normalized already."""
    if not pixels.is_floating_point():
        mean, std = (torch.tensor(each, device=pixels.device) for each in (preprocessing.mean, preprocessing.std))
        white, width = torch.tensor(255.0, device=pixels.device), pixels.shape[2]  # a GPU inverts a plain number
        rows = pixels.flatten(2).to(torch.float32).div_(white)  # whole rows are faster than three values
        pixels = rows.sub_(mean.repeat(width)).div_(std.repeat(width)).view(pixels.shape)
    return pixels.permute(0, 3, 1, 2)


def decode(file: ImageFile) -> Image.Image:
    """Decode an image completely, or raise an `UntrustedInputError`; no other image ever replaces a broken one."""
    # `ImageOps.exif_transpose` also writes the other EXIF fields back, and fails where one of them is broken.
    with _translate_decode_errors(file), _open(file.content) as image:
        image.load()
        transpose = _EXIF_TRANSPOSE.get(_orientation(image))
        upright = image.copy() if transpose is None else image.transpose(transpose)
    if upright.mode.startswith(_DEEP_MODES):
        raise UntrustedInputError(
            file.description,
            f"has more than 8 bits per channel (mode {upright.mode})",
            hint="convert the images to 8 bits first",
        )
    return upright


def _open(content: bytes) -> Image.Image:
    """Open an image whose EXIF may be broken; Pillow reads that of an AVIF, and of some JPEGs, before the pixels."""
    try:
        return Image.open(BytesIO(content), formats=image_formats())
    except _DECODE_ERRORS:
        without_exif = content.replace(b"Exif", b"exif", 1)  # Pillow skips the block under this name
        if without_exif == content:
            raise
        return Image.open(BytesIO(without_exif), formats=image_formats())


def _orientation(image: Image.Image) -> int:
    """Return the orientation in the EXIF block; 1, which is upright, if there is none or it is broken."""
    with suppress(*_DECODE_ERRORS):
        orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
        return orientation
    return 1


@contextmanager
def _translate_decode_errors(file: ImageFile) -> Iterator[None]:
    """Turn the errors of Pillow into an `UntrustedInputError` about the image."""
    try:
        yield
    except _DECODE_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, UnidentifiedImageError):
            reason = "expected an image in a format that Pillow decodes by itself, got another file"
        raise UntrustedInputError(
            file.description, f"cannot be read: {reason}", hint="repair the data set or remove the image"
        ) from error


def _resized(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the width and height of an image between timm's resize and its crop, to within a pixel."""
    _, *sides = preprocessing.input_size
    height, width = (side / preprocessing.crop_pct for side in sides)
    if preprocessing.crop_mode == "squash":
        return int(width), int(height)
    select = min if preprocessing.crop_mode == "border" else max
    scale = select(width / size[0], height / size[1])
    return max(1, int(scale * size[0])), max(1, int(scale * size[1]))
