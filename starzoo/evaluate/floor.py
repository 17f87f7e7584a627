"""A model without label names must show that its classes are those of the data: its answers must beat chance."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from starzoo.architecture import Architecture
from starzoo.errors import IncompatibleError
from starzoo.evaluate.predictive import luck
from starzoo.progress import Progress, silent

if TYPE_CHECKING:
    from starzoo.data import ImageData

__all__ = ["check_above_chance"]

_BATCH, _BATCHES = 256, 4
_LUCK = 0.01  # a model that answers blindly passes once in a hundred times


def check_above_chance(
    architecture: Architecture,
    models: Mapping[str, Mapping[str, Tensor]],
    data: ImageData,
    *,
    progress: Progress = silent,
) -> None:
    """Make sure that models are better than chance on a sample of the un-augmented training images.

    This finds outputs in another order, or of another task; not two classes of many that changed places.

    Args:
        architecture: What all models have in common.
        models: Their state dicts by name.
        data: The task's images.
        progress: Told after every model.

    Raises:
        IncompatibleError: A model is not better than chance.
    """
    network = architecture.build().to("cuda" if torch.cuda.is_available() else "cpu")
    device = next(network.parameters()).device
    sample = data.train.loader(_BATCH, epoch=0, seed=0, drop_last=False)
    for done, (name, state) in enumerate(models.items(), start=1):
        network.load_state_dict(dict(state))
        network.eval()  # which also drops what some networks cache of the weights before
        answers, labels = [], []
        with torch.inference_mode():
            for images, right in islice(sample, _BATCHES):
                answers.append(network(images.to(device)).argmax(1).cpu())
                labels.append(right)
        given, wanted = torch.cat(answers), torch.cat(labels)
        if luck(given, wanted) > _LUCK:
            raise IncompatibleError(
                f"{name}: is right on {int((given == wanted).sum())} of {len(wanted)} training images of "
                f"{data.config.dataset}, no better than chance, and has no label names",
                hint="leave it out, or name its classes as label_names in its config.json if only their order differs",
                subject=name,
            )
        progress("checking models", done, len(models))
