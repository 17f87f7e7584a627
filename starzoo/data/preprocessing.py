"""The image transform that belongs to a model: timm's data configuration."""

from __future__ import annotations

from starzoo.config import FrozenModel

__all__ = ["Preprocessing"]


class Preprocessing(FrozenModel):
    """timm's data configuration: how an image is resized, cropped and normalized.

    Attributes:
        input_size: (channels, height, width) in pixels.
        mean: Subtracted from every channel, on the scale 0 to 1.
        std: Every channel is divided by it, on the scale 0 to 1.
        interpolation: Resampling filter, by timm's name.
        crop_pct: Share of the resized image that the center crop keeps.
        crop_mode: timm's crop mode.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"
