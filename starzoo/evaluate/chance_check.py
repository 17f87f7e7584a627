"""Check that a model without label names is better than chance on the data, and find its class order."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from starzoo.data.class_names import list_names
from starzoo.errors import IncompatibleError
from starzoo.metrics import luck
from starzoo.models.architecture import Architecture
from starzoo.parallel import default_device
from starzoo.progress import Progress, no_progress

if TYPE_CHECKING:
    from starzoo.data.task import ImageTask

__all__ = ["find_class_orders"]

_logger = logging.getLogger(__name__)

_BATCH, _BATCHES = 256, 4
_LUCK = 0.01  # a model that answers blindly passes once in a hundred times, for each order that is tried


def find_class_orders(
    architecture: Architecture,
    models: Mapping[str, Mapping[str, Tensor]],
    data: ImageTask,
    *,
    progress: Progress = no_progress,
) -> dict[str, tuple[str, ...]]:
    """Find out in which order models have the classes of the data, on a sample of the un-augmented training images.

    An order is the one where a model is right most often. It must be better than chance there, so that outputs of
    another task or in any other order are found; not two classes of many that changed places.
    """
    network = architecture.build().to(default_device())
    device = next(network.parameters()).device
    sample = data.train.loader(_BATCH, epoch=0, seed=0, drop_last=False)
    orders = {names: _indices(names, data.class_names) for names in data.class_orders}
    found = {}
    for done, (name, state) in enumerate(models.items(), start=1):
        network.load_state_dict(dict(state))
        network.eval()  # which also drops what some networks cache of the weights before
        answers, labels = [], []
        with torch.inference_mode():
            for images, right in islice(sample, _BATCHES):
                answers.append(network(images.to(device)).argmax(1).cpu())
                labels.append(right)
        outputs, wanted = torch.cat(answers), torch.cat(labels)
        best = max(orders, key=lambda names: int((orders[names][outputs] == wanted).sum()))
        given = orders[best][outputs]
        if luck(given, wanted) > _LUCK:
            raise IncompatibleError(
                name,
                f"is right on {int((given == wanted).sum())} of {len(wanted)} training images of "
                f"{data.config.dataset}, no better than chance, and has no label names",
                hint="leave it out, or name its classes as label_names in its config.json if only their order differs",
            )
        found[name] = best
        progress("checking models", done, len(models))
    if others := [name for name, names in found.items() if names != data.class_names]:
        _logger.warning(
            "%d of %d models without label names%s are right on %s with its classes in another order%s",
            len(others),
            len(found),
            list_names(others),
            data.config.dataset,
            list_names(found[others[0]]),
        )
    return found


def _indices(names: Sequence[str], among: Sequence[str]) -> Tensor:
    """Where each name is among the same names in another order."""
    index = {name: number for number, name in enumerate(among)}
    return torch.arange(len(names)) if names == among else torch.tensor([index[name] for name in names])
