"""Image formats that Pillow decodes without other programs."""

from __future__ import annotations

from functools import cache

from PIL import Image

__all__ = ["image_extensions", "image_formats"]

# Left out: EPS runs Ghostscript, IPTC opens its content as any format including EPS, and Windows draws WMF.
# FITS may unpack without a bound (Pillow before 12.2). BUFR, GRIB, HDF5 and MPEG are identified but not decoded.
# TGA and the formats after it have hardly a magic number, so they are tried last.
_FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "CUR", "ICNS", "DDS", "DIB"),
    *("PSD", "QOI", "SGI", "SUN", "PCX", "DCX", "FLI", "BLP", "FTEX", "GBR", "MSP", "XBM", "XPM", "XVTHUMB"),
    *("MCIDAS", "PIXAR", "TGA", "PCD", "IM", "IMT", "SPIDER"),
)


@cache
def image_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that this build of Pillow supports."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@cache
def image_extensions() -> frozenset[str]:
    """Return the extensions of their files, with the dot."""
    formats = {*image_formats(), "MPO"}  # Pillow opens MPO as JPEG
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in formats)
