"""Find the class order of models without label names; they must be better than chance on the data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from starzoo.data.class_names import list_names
from starzoo.errors import IncompatibleError
from starzoo.evaluate.evaluator import Evaluator, name_errors
from starzoo.metrics import chance_p_value
from starzoo.models.class_order import named_classes
from starzoo.models.sources import Source
from starzoo.parallel import default_device
from starzoo.progress import Progress, no_progress

if TYPE_CHECKING:
    from starzoo.data.task import ImageTask

__all__ = ["name_classes"]

_logger = logging.getLogger(__name__)

_BATCH, _IMAGES = 256, 1024
_MAX_P_VALUE = 0.01  # for each order that is tried


def name_classes(models: Sequence[Source], data: ImageTask, *, progress: Progress = no_progress) -> list[Source]:
    """Give models without label names those of the data, in the order in which they are right most often.

    The order must be better than chance on a sample of the un-augmented training images. This finds outputs of another
    task and in most other orders, but not two classes of many that changed places.
    """
    unnamed = [model for model in models if not model.architecture.label_names]
    if not unnamed:
        return list(models)
    labels = data.train.labels[data.train.sample_indices(_IMAGES)]
    images = partial(data.train.images, _BATCH, limit=_IMAGES)
    evaluator = Evaluator(models[0].architecture.build().to(default_device()), {"train": (images, labels)})
    orders = {names: _indices(names, data.class_names) for names in data.class_orders}
    class_orders: dict[str, tuple[str, ...]] = {}
    for count, model in enumerate(unnamed, start=1):
        with name_errors(model.name):
            outputs = evaluator.log_probabilities(model.state, estimate=False)["train"].argmax(1)
        best = max(orders, key=lambda names: int((orders[names][outputs] == labels).sum()))
        answers = orders[best][outputs]
        if chance_p_value(answers, labels) > _MAX_P_VALUE:
            raise IncompatibleError(
                model.name,
                f"is right on {int((answers == labels).sum())} of {len(labels)} training images of "
                f"{data.config.dataset}, no better than chance, and has no label names",
                hint="leave it out, or name its classes as label_names in its config.json if only their order differs",
            )
        class_orders[model.name] = best
        progress("checking models", count, len(unnamed))
    if reordered := [name for name, names in class_orders.items() if names != data.class_names]:
        _logger.warning(
            "%d of %d models without label names%s are right on %s with its classes in another order%s",
            len(reordered),
            len(class_orders),
            list_names(reordered),
            data.config.dataset,
            list_names(class_orders[reordered[0]]),
        )
    return [named_classes(model, class_orders[model.name]) if model.name in class_orders else model for model in models]


def _indices(names: Sequence[str], others: Sequence[str]) -> Tensor:
    """The index of each name among the same names in another order."""
    index = {name: number for number, name in enumerate(others)}
    return torch.arange(len(names)) if names == others else torch.tensor([index[name] for name in names])
