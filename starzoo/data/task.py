"""An image classification task: its splits, classes and validation images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from starzoo.config import DataConfig, EvalConfig, TransformConfig
from starzoo.data.augmentation import training_transform
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
    """A classification task, preprocessed for models."""

    config: DataConfig  # with the commit on the Hub and the names of the splits
    class_names: tuple[str, ...]  # in the order of the labels and of the models
    label_names: tuple[str, ...] | None = None  # in the order of the data set, if that is another
    train: Split
    test: Split
    validation: Split | None = None  # the training images that `train_size` leaves out; not in the fingerprint
    stored: RawTask  # with the labels in the class order of the data set

    def batch_norm_images(self, config: EvalConfig) -> Iterator[Tensor]:
        """Yield the training images that batch-norm statistics are estimated on, always the same."""
        augment = config.batch_norm_augment or self.config.augment
        yield from self.train.images(
            config.batch_size, limit=config.batch_norm_images, seed=config.seed, augment=augment
        )

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of class names, labels and image files, which reveals a changed data set."""
        return self.stored.fingerprint

    @property
    def class_orders(self) -> list[tuple[str, ...]]:
        """The class orders that a model without label names may have learned.

        The first is that of the labels, the next that of the stored labels. If the latter is alphabetical, the order
        of torchvision and `datasets`, then timm's order (2 before 10) is the last.
        """
        from timm.utils.misc import natural_key

        stored = self.label_names or self.class_names
        orders = [self.class_names, stored]
        if list(stored) == sorted(stored):
            orders.append(tuple(sorted(stored, key=natural_key)))
        return list(dict.fromkeys(orders)) if len(set(stored)) == len(stored) else [self.class_names]


def load_data(
    config: DataConfig,
    preprocessing: Preprocessing,
    *,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    seed: int = 0,
) -> ImageTask:
    """Open a data set for models of one preprocessing; images are decoded at their first use."""
    if config.augment == "timm":  # what timm refuses is refused before any work
        training_transform(config.transform or TransformConfig(), preprocessing)
    stored = open_data(config, seed=seed)
    stored_names, names = stored.class_names, tuple(class_names or stored.class_names)
    if num_classes is not None and len(names) != num_classes:
        expected = pluralize(num_classes, "class", "classes")
        raise IncompatibleError(
            config.dataset,
            f"expected the {expected} of the models, got {len(stored_names)}",
            hint="use the data set that the models were trained on",
        )
    indices = tuple(map(str, range(len(names))))
    if stored.is_numbered and set(stored_names) != set(names) and stored_names == indices:
        order = list(range(len(names)))
    else:
        order = match_names(names, stored_names, owner="the models", subject=config.dataset)
    is_reordered = order != sorted(order)
    if is_reordered:
        warn_once(f"{config.dataset}: its classes are in another order than those of the models, and matched by name")
    labels = np.argsort(order)  # by stored label

    def split(records: RawSplit) -> Split:
        return Split(replace(records, labels=labels[records.labels]), preprocessing, config.transform)

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
    """Open the test images of a data set that may have no other split and no labels."""
    return Split(open_unlabeled(config, seed=seed), preprocessing)
