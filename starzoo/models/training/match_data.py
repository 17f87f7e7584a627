"""Match an architecture to a data set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from starzoo.config import DataConfig
from starzoo.data.decoding import DecodedImages, decode
from starzoo.data.preprocessing import Preprocessing
from starzoo.data.records import open_data
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.models.architecture import Architecture, number_among
from starzoo.models.timm_registry import registry_entry, resolve_name

__all__ = ["architecture_for"]

_GRAY_MODES = frozenset({"1", "L", "LA"})
_INSPECTED = 32  # images, for the size and the number of channels
_MEASURED = 5000  # images, for mean and standard deviation
_BATCH = 64


def architecture_for(
    name: str,
    data_config: DataConfig,
    *,
    model_args: Mapping[str, Any] | None = None,
    image_size: int | None = None,
) -> Architecture:
    """The architecture that fits a task: classes, channels, size, mean and deviation are those of the data.

    Args:
        name: The name that `timm.create_model` takes; a tag is ignored.
        data_config: The task.
        model_args: Further JSON arguments of `timm.create_model`.
        image_size: Height and width in pixels; the data's own when not given.

    Returns:
        The architecture, with label names.

    Raises:
        UsageError: timm does not know the name, images differ in size and no size is given, or the arguments ask for
            another number of classes.
    """
    name, _ = resolve_name(name)  # what is trained from scratch has no tag
    registry = registry_entry(name)
    arguments = dict(model_args or {})
    task = open_data(data_config)
    num_classes = len(task.class_names)
    if arguments.pop("num_classes", num_classes) != num_classes:
        problem = f"{name}: num_classes is that of {data_config.dataset}, {num_classes}"
        raise UsageError("model_args", problem, hint="leave it out of --model-args")
    images = [decode(file) for file in task.train.files(_sample(len(task.train), _INSPECTED))]
    channels = number_among(name, arguments, "in_chans") or (
        1 if all(image.mode in _GRAY_MODES for image in images) else 3
    )
    if channels != registry.input_size[0]:
        arguments["in_chans"] = channels
    width, height = (image_size, image_size) if image_size else images[0].size
    if not image_size and len({image.size for image in images}) > 1:
        raise UsageError("image_size", f"{data_config.dataset}: its images differ in size", hint="give --image-size")
    if registry.fixed_input_size and (height, width) != tuple(registry.input_size[1:]):
        arguments.setdefault("img_size", [height, width])
    mean, std = _channel_statistics(DecodedImages(task.train, Preprocessing(input_size=(channels, height, width))))
    architecture = Architecture(
        name=name,
        num_classes=num_classes,
        model_args=arguments,
        preprocessing=Preprocessing(input_size=(channels, height, width), mean=mean, std=std),
        label_names=task.class_names,
    )
    config = architecture.config()  # refuses arguments that timm refuses, and a size that the model cannot take
    try:
        Architecture.from_config(json.loads(json.dumps(config)), name)
    except UntrustedInputError as error:  # before anything is trained
        raise UsageError(
            name, f"{error.problem}, so that starzoo could not load the members", hint="leave that argument out"
        ) from error
    return architecture


def _channel_statistics(pixels: DecodedImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of every channel on the scale 0 to 1, to four digits."""
    counts = torch.zeros(pixels.shape[-1], 256, dtype=torch.float64)  # how often each channel has each value
    for rows in torch.tensor(_sample(pixels.shape[0], _MEASURED)).split(_BATCH):  # type: ignore[no-untyped-call]
        for channel, values in zip(counts, pixels.decode(rows).flatten(0, 2).unbind(-1), strict=True):
            channel += torch.bincount(values, minlength=256)
    values, total = torch.arange(256, dtype=torch.float64) / 255, counts.sum(1, keepdim=True)
    mean = (counts * values).sum(1, keepdim=True) / total
    variance = (counts * (values - mean).square()).sum(1) / (total.squeeze(1) - 1).clamp_min(1)
    std = [round(value, 4) or 1.0 for value in variance.sqrt().tolist()]  # a constant channel stays as it is
    return tuple(round(value, 4) for value in mean.squeeze(1).tolist()), tuple(std)


def _sample(count: int, limit: int) -> list[int]:
    """Return random rows of a split, which may be sorted by class."""
    rows: list[int] = np.random.default_rng(0).permutation(count)[:limit].tolist()
    return rows
