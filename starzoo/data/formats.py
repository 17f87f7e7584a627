"""Image formats that Pillow decodes without other programs."""

from __future__ import annotations

from functools import cache

from PIL import Image

__all__ = ["image_extensions", "image_formats"]

# Left out: EPS runs Ghostscript, and IPTC opens what it holds as any format, EPS among them. WMF is drawn by Windows.
# FITS may unpack without a bound (Pillow before 12.2). BUFR, GRIB, HDF5 and MPEG are recognized and not decoded.
# TGA, PCD and those after it have no magic number, or hardly any, and are tried last.
_FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "CUR", "ICNS", "DDS", "DIB"),
    *("PSD", "QOI", "SGI", "SUN", "PCX", "DCX", "FLI", "BLP", "FTEX", "GBR", "MSP", "XBM", "XPM", "XVTHUMB"),
    *("MCIDAS", "PIXAR", "TGA", "PCD", "IM", "IMT", "SPIDER"),
)


@cache
def image_formats() -> tuple[str, ...]:
    """The names of the formats, as Pillow calls them, that this build of Pillow knows."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@cache
def image_extensions() -> frozenset[str]:
    """The extensions of their files, such as `.png`."""
    formats = {*image_formats(), "MPO"}  # which is opened as JPEG
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in formats)
