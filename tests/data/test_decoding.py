"""Image files as people have them: every format that Pillow decodes by itself, and EXIF that is broken."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from starzoo.config import DataConfig
from starzoo.data.decoding import decode
from starzoo.data.formats import image_extensions, image_formats
from starzoo.data.records import ImageFile, open_data
from starzoo.errors import UntrustedInputError
from tests.data.pictures import encode, paint, write_pictures

SAVED_WITHOUT_LOSS = ["PNG", "TIFF", "BMP", "PPM", "ICO", "TGA", "PCX", "SGI", "DDS", "QOI", "DIB", "JPEG2000"]


def read(content: bytes) -> Image.Image:
    return decode(ImageFile("here", content))


@pytest.mark.parametrize("kind", SAVED_WITHOUT_LOSS)
def test_formats_without_loss(kind: str) -> None:
    image = paint(3, (16, 16))
    if kind == "PCX":
        image = image.convert("L")
    assert np.array_equal(np.array(read(encode(image, kind)).convert(image.mode)), np.array(image))


@pytest.mark.parametrize("kind", ["AVIF", "JPEG", "WEBP", "GIF", "MPO", "BLP"])
def test_formats_with_loss(kind: str) -> None:
    image = Image.new("P" if kind == "BLP" else "RGB", (16, 16), 7)
    found = read(encode(image, kind, **({"save_all": True, "append_images": [image]} if kind == "MPO" else {})))
    assert found.size == (16, 16)
    assert np.abs(np.subtract(found.convert("RGB"), image.convert("RGB"), dtype=np.int16)).max() < 16


def test_a_photoshop_file() -> None:
    pixels = np.array(paint(3, (5, 4)))
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 4, 5, 8, 3)
    content = header + struct.pack(">III", 0, 0, 0) + struct.pack(">H", 0) + pixels.transpose(2, 0, 1).tobytes()
    assert np.array_equal(np.array(read(content)), pixels)


@pytest.mark.parametrize("kind", ["EPS", "WMF", "IPTC", "FITS", "BUFR", "GRIB", "HDF5", "MPEG", "PDF"])
def test_formats_that_run_programs_or_are_not_decoded_are_left_out(kind: str) -> None:
    assert kind not in image_formats()


def test_t07_a_file_of_no_format_is_refused() -> None:
    for content in (encode(paint(), "EPS"), b"no image", b"", bytes(1000)):
        with pytest.raises(UntrustedInputError, match="here: cannot be read: expected an image in a format"):
            read(content)


def test_class_folders_of_any_format(tmp_path: Path) -> None:
    assert {".avif", ".jp2", ".mpo", ".tga", ".qoi", ".psd", ".jpeg", ".PNG".lower()} <= image_extensions()
    assert image_extensions().isdisjoint({".eps", ".ps", ".wmf", ".emf", ".h5", ".pdf"})
    write_pictures(tmp_path, ["train/cat", "train/dog", "test/cat", "test/dog"], each=1)
    for name, kind in (("a.avif", "AVIF"), ("b.TGA", "TGA"), ("c.qoi", "QOI"), ("d.JP2", "JPEG2000")):
        (tmp_path / "train" / "cat" / name).write_bytes(encode(paint(), kind))
    train = open_data(DataConfig(dataset=str(tmp_path))).train
    assert [decode(file).size for file in train.files(range(len(train)))] == [(8, 8)] * 6


# EXIF

EXIF = Image.Exif()
EXIF[ExifTags.Base.Orientation] = 6
EXIF[ExifTags.Base.Make] = "a camera"
EXIF[ExifTags.Base.ResolutionUnit] = 2
EXIF[ExifTags.Base.XResolution] = 72.0
PHOTO = Image.fromarray((0.6 * np.arange(8 * 16 * 3).reshape(8, 16, 3)).astype(np.uint8))


def tiff() -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[ExifTags.Base.Orientation] = 6
    tags[ExifTags.IFD.Exif] = {ExifTags.Base.ExposureTime: 0.01}
    return encode(PHOTO, "TIFF", tiffinfo=tags)


def png_text(hexadecimal: str) -> bytes:
    """EXIF as ImageMagick writes it into a PNG."""
    info = PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(hexadecimal) // 2:8}\n{hexadecimal}\n")
    return encode(PHOTO, pnginfo=info)


def photo(kind: str) -> bytes:
    exif = Image.Exif()
    exif.load(EXIF.tobytes())  # Pillow takes the orientation out of what it writes into an AVIF
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(kind, {})
    content = encode(PHOTO, kind.removesuffix(" without JFIF"), exif=exif, **options)
    if kind.endswith("without JFIF"):  # as a camera writes it, so that Pillow looks for the resolution in EXIF
        length = struct.unpack(">H", content[4:6])[0]
        content = content[:2] + content[4 + length :]
    return content


KINDS = ["PNG", "JPEG", "JPEG without JFIF", "WEBP", "AVIF"]
PHOTOS = {**{kind: photo(kind) for kind in KINDS}, "TIFF": tiff(), "PNG text": png_text(EXIF.tobytes().hex())}


@pytest.mark.parametrize("kind", PHOTOS)
def test_the_orientation_is_applied_in_every_container(kind: str) -> None:
    found = read(PHOTOS[kind])
    assert found.size == (8, 16)
    difference = np.subtract(found.convert("RGB"), PHOTO.transpose(Image.Transpose.ROTATE_270), dtype=np.int16)
    assert np.abs(difference).mean() < 4


def repair_crc(content: bytes) -> bytes:
    """A PNG whose eXIf chunk was written so, rather than damaged on the way."""
    at = content.find(b"eXIf")
    length = struct.unpack(">I", content[at - 4 : at])[0]
    crc = zlib.crc32(content[at : at + 4 + length])
    return content[: at + 4 + length] + struct.pack(">I", crc) + content[at + 8 + length :]


@pytest.mark.parametrize("damage", ["header", "count", "noise"])
@pytest.mark.parametrize("kind", KINDS)
def test_broken_exif_never_stops_an_image(kind: str, damage: str) -> None:
    content = PHOTOS[kind]
    start = content.find(b"MM\0*")
    assert start > 0
    rng = np.random.default_rng(0)
    for _ in range(20 if damage == "noise" else 1):
        spoiled = {"header": b"\0\0\x11\0\0\1\4\0", "count": b"MM\0*\0\0\0\x08\xff\xff", "noise": rng.bytes(24)}[damage]
        broken = content[:start] + spoiled + content[start + len(spoiled) :]
        found = read(repair_crc(broken) if kind == "PNG" else broken)
        if kind == "AVIF":
            assert found.size == (8, 16)  # it has the orientation a second time, outside of EXIF
        pixels = found if found.size == PHOTO.size else found.transpose(Image.Transpose.ROTATE_90)
        assert np.abs(np.subtract(pixels.convert("RGB"), PHOTO, dtype=np.int16)).mean() < 4


def test_broken_exif_in_text_and_in_a_tiff() -> None:
    assert np.array_equal(np.array(read(png_text("no hexadecimal digits"))), np.array(PHOTO))
    content = PHOTOS["TIFF"]
    start = Image.open(BytesIO(content)).tag_v2[ExifTags.IFD.Exif]
    broken = content[:start] + b"\xff" * 14 + content[start + 14 :]
    assert np.array_equal(np.array(read(broken)), np.array(PHOTO.transpose(Image.Transpose.ROTATE_270)))


def test_a_damaged_image_with_exif_is_still_refused() -> None:
    for kind in KINDS:
        with pytest.raises(UntrustedInputError, match="here: cannot be read"):
            read(PHOTOS[kind][: len(PHOTOS[kind]) * 2 // 3])
