"""Decode stored images safely, then apply timm's evaluation transform."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BytesIO

import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from starzoo.data.formats import image_formats
from starzoo.data.preprocessing import Preprocessing
from starzoo.data.records import ImageFile, RawSplit
from starzoo.errors import UntrustedInputError, UsageError

__all__ = ["DecodedImages", "decode", "image_loader", "normalize"]

_MODES = {1: "L", 3: "RGB"}
_DEEP_MODES = ("I", "F")  # Pillow clips these when it converts them to 8 bits
_MAX_PIXELS = 2 * 89_478_485  # twice Pillow's MAX_IMAGE_PIXELS: its own limit for decompression bombs
_CACHE_BYTES = 4 * 2**30
_IMAGES_PER_DECODE = 1024
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

    An image is decoded at its first use, and then cached if the whole split takes at most 4 GiB.
    """

    def __init__(self, records: RawSplit, preprocessing: Preprocessing) -> None:
        channels, height, width = preprocessing.input_size
        self.records = records
        self.shape = (len(records), height, width, channels)
        self._read = image_loader(preprocessing, records.dataset)
        fits = len(records) * height * width * channels <= _CACHE_BYTES
        self._cache = torch.empty(self.shape, dtype=torch.uint8) if fits else None
        self._is_cached = torch.zeros(len(records), dtype=torch.bool)

    @property
    def is_kept(self) -> bool:
        """Whether images are decoded once."""
        return self._cache is not None

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Return the pixels of images, uint8 of shape (indices, height, width, channels)."""
        if self._cache is None:
            return self._decode(indices)
        missing = torch.unique(indices[~self._is_cached[indices]])
        for start in range(0, len(missing), _IMAGES_PER_DECODE):
            chunk = missing[start : start + _IMAGES_PER_DECODE]
            self._cache[chunk] = self._decode(chunk)
            self._is_cached[chunk] = True
        return self._cache[indices]

    def _decode(self, indices: Tensor) -> Tensor:
        files, threads = self.records.files(indices.tolist()), torch.get_num_threads()
        if threads == 1:
            return torch.stack([self._read(file) for file in files])
        with ThreadPoolExecutor(threads) as pool:
            return torch.stack(list(pool.map(self._read, files)))


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
