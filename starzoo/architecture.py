"""Which timm model: a name, its arguments and its preprocessing, as a value that builds the module and its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import Field

from starzoo.config import Frozen
from starzoo.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Architecture", "Preprocessing"]


class Preprocessing(Frozen):
    """What happens to an image before the model sees it: timm's data configuration.

    Attributes:
        input_size: (channels, height, width) in pixels.
        mean: Subtracted from every channel, on the scale 0 to 1.
        std: Every channel is divided by it, on the scale 0 to 1.
        interpolation: Resampling filter, by timm's name.
        crop_pct: Share of the resized image that the centre crop keeps.
        crop_mode: timm's crop mode.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"


class Architecture(Frozen):
    """One timm architecture with everything that decides its shapes and its input.

    Attributes:
        name: The name that `timm.create_model` takes, without a pretrained tag.
        num_classes: Number of outputs.
        model_args: Further JSON arguments of `timm.create_model`.
        preprocessing: The image transform that belongs to the weights.
        label_names: One name per class, in the order of the outputs, or None when unknown.
    """

    name: str
    num_classes: int = Field(ge=1)
    model_args: dict[str, Any] = {}
    preprocessing: Preprocessing = Preprocessing()
    label_names: tuple[str, ...] | None = None

    def build(self) -> nn.Module:
        """Make the model with fresh random weights, in evaluation mode.

        Returns:
            The module, on the current default device.

        Raises:
            UsageError: timm does not know the name or refuses the arguments.
        """
        import timm

        try:
            model: nn.Module = timm.create_model(
                self.name, pretrained=False, num_classes=self.num_classes, **self.model_args
            )
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise UsageError(
                f"{self.name}: timm cannot build it with {self.model_args}: {error}",
                hint="see timm.list_models() for names and the model's page for arguments",
                subject=self.name,
            ) from error
        return model.eval()

    def build_meta(self) -> nn.Module:
        """Make the model on the meta device: shapes without memory.

        Returns:
            The module on the meta device.
        """
        import torch

        with torch.device("meta"):
            return self.build()

    def example_input(self) -> torch.Tensor:
        """A zero image batch of the model's input size, shape (1, channels, height, width)."""
        import torch

        return torch.zeros(1, *self.preprocessing.input_size)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor of the state dict, by name."""
        return {name: tuple(tensor.shape) for name, tensor in self.build_meta().state_dict().items()}
