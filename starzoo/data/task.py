"""An image classification task: its splits, classes and validation images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from starzoo.config import DataConfig, EvalConfig
from starzoo.data.class_names import match_names
from starzoo.data.hub_datasets import warn_once
from starzoo.data.preprocessing import Preprocessing
from starzoo.data.records import RawSplit, RawTask, open_data, open_unlabeled
from starzoo.data.split import Split
from starzoo.errors import IncompatibleError
from starzoo.text import pluralize

__all__ = ["ImageTask", "load_data", "load_unlabeled"]


@dataclass(frozen=True, kw_only=True)
class ImageTask:
    """A classification task as models of one preprocessing see it.

    Attributes:
        config: Where it came from, at which commit of the Hub, which splits it has, and how training images are
            augmented.
        class_names: The name of every class, in the order of the labels, which is that of the models.
        label_names: The data set's own class order, where it was brought into that of the models; else None.
        train: The training split.
        test: The test split.
        validation: The training images that `train_size` leaves out, which nothing was fitted on; None where it leaves
            none. The fingerprint is not about them.
        stored: The same as it is stored, with the labels in its own class order.
    """

    config: DataConfig
    class_names: tuple[str, ...]
    label_names: tuple[str, ...] | None = None
    train: Split
    test: Split
    validation: Split | None = None
    stored: RawTask

    def statistics_images(self, how: EvalConfig) -> Iterator[Tensor]:
        """The training images that batch-norm statistics are estimated on, the same each time."""
        augment = how.batch_norm_augment or self.config.augment
        yield from self.train.images(how.batch_size, limit=how.batch_norm_images, seed=how.seed, augment=augment)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over class names, labels and image files, so that a changed data set is noticed."""
        return self.stored.fingerprint

    @property
    def class_orders(self) -> list[tuple[str, ...]]:
        """The class orders that a model without label names may have learned.

        The first is that of the labels, the next that of the stored labels. Where this is the alphabetical one, as
        torchvision and `datasets` sort class folders, timm's own (2 before 10) is the last.
        """
        from timm.utils.misc import natural_key

        own = self.label_names or self.class_names
        orders = [self.class_names, own]
        if list(own) == sorted(own):
            orders.append(tuple(sorted(own, key=natural_key)))
        return list(dict.fromkeys(orders)) if len(set(own)) == len(own) else [self.class_names]


def load_data(
    config: DataConfig,
    preprocessing: Preprocessing,
    *,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    seed: int = 0,
) -> ImageTask:
    """Open a data set for models of one preprocessing. Images are decoded when they are first used."""
    stored = open_data(config, seed=seed)
    found, names = stored.class_names, tuple(class_names or stored.class_names)
    if num_classes is not None and len(names) != num_classes:
        wanted = pluralize(num_classes, "class", "classes")
        raise IncompatibleError(
            config.dataset,
            f"expected the {wanted} of the models, got {len(found)}",
            hint="use the data set that the models were trained on",
        )
    if stored.is_numbered and set(found) != set(names) and found == tuple(map(str, range(len(names)))):
        order = list(range(len(names)))
    else:
        order = match_names(names, found, owner="the models", subject=config.dataset)
    is_reordered = order != sorted(order)
    if is_reordered:
        warn_once(f"{config.dataset}: its classes are in another order than those of the models, and matched by name")
    labels = np.argsort(order)  # by stored label

    def split(records: RawSplit) -> Split:
        return Split(replace(records, labels=labels[records.labels]), preprocessing)

    return ImageTask(
        config=config.model_copy(
            update={
                "revision": stored.revision,
                "train_split": stored.train.name,
                "test_split": stored.test.name,
            }
        ),
        class_names=names,
        label_names=tuple(names[label] for label in labels) if is_reordered else None,
        train=split(stored.train),
        test=split(stored.test),
        stored=stored,
        validation=None if stored.validation is None else split(stored.validation),
    )


def load_unlabeled(config: DataConfig, preprocessing: Preprocessing, *, seed: int = 0) -> Split:
    """Open the test images of a data set that need be no task: it may have this one split only, and no labels."""
    return Split(open_unlabeled(config, seed=seed), preprocessing)
