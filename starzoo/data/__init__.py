"""Images to train and evaluate on: embedded digits, or whatever `datasets.load_dataset` reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from starzoo.architecture import Preprocessing
from starzoo.config import DataConfig, EvalConfig
from starzoo.data.files import read_images
from starzoo.data.reading import StoredData, open_data, open_images
from starzoo.data.split import Augmentation, Loader, Split
from starzoo.errors import IncompatibleError
from starzoo.wording import counted

__all__ = [
    "Augmentation",
    "ImageData",
    "Loader",
    "Split",
    "StoredData",
    "load_data",
    "load_unlabelled",
    "open_data",
    "read_images",
]


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """A classification task as models of one preprocessing see it.

    Attributes:
        config: Where it came from, at which commit of the Hub, and how training images are augmented.
        class_names: The name of every class, in the order of the labels.
        train: The training split.
        test: The test split.
        validation: The training images that `train_size` leaves out, which nothing was fitted on; None where it leaves
            none. The fingerprint is not about them.
        stored: The same as it is stored.
    """

    config: DataConfig
    class_names: tuple[str, ...]
    train: Split
    test: Split
    validation: Split | None = None
    stored: StoredData

    def statistics_images(self, how: EvalConfig) -> Iterator[Tensor]:
        """The training images that batch-norm statistics are estimated on, the same each time.

        Args:
            how: How many, in which batches, and how they are augmented: as in training when that is not said.

        Yields:
            Images of shape (batch, channels, height, width).
        """
        augment = how.statistics_augment or self.config.augment
        yield from self.train.images(how.batch_size, limit=how.statistics_images, seed=how.seed, augment=augment)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over class names, labels and image files, so that a changed data set is noticed."""
        return self.stored.fingerprint


def load_data(
    config: DataConfig,
    preprocessing: Preprocessing,
    *,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    seed: int = 0,
) -> ImageData:
    """Open a data set for models of one preprocessing. Images are decoded when they are first used.

    Args:
        config: Which images, splits and columns.
        preprocessing: The image transform that belongs to the weights.
        class_names: The models' label names in the order of their outputs; the data set's must be the same.
        num_classes: How many outputs the models have; needed where their label names are not known.
        seed: Draws the subsets of `train_size` and `test_size`.

    Returns:
        The task.

    Raises:
        IncompatibleError: The data set has other classes than the models.
    """
    stored = open_data(config, seed=seed)
    _check_classes(config.dataset, stored.class_names, class_names, num_classes)
    return ImageData(
        config=config.model_copy(update={"revision": stored.revision}),
        class_names=stored.class_names,
        train=Split(stored.train, preprocessing),
        test=Split(stored.test, preprocessing),
        stored=stored,
        validation=None if stored.validation is None else Split(stored.validation, preprocessing),
    )


def load_unlabelled(config: DataConfig, preprocessing: Preprocessing, *, seed: int = 0) -> Split:
    """Open the test images of a data set that need be no task: it may have this one split only, and no labels.

    Args:
        config: Which images and which split, by `test_split`.
        preprocessing: The image transform that belongs to the weights.
        seed: Draws the subset of `test_size`.

    Returns:
        The images, all of label 0.
    """
    return Split(open_images(config, seed=seed), preprocessing)


def _check_classes(dataset: str, found: Sequence[str], names: Sequence[str] | None, count: int | None) -> None:
    hint = "use the data set that the models were trained on, with its classes in the same order"
    for expected in (count, None if names is None else len(names)):
        if expected is not None and len(found) != expected:
            raise IncompatibleError(
                f"{dataset}: has {counted(len(found), 'class', 'classes')}, but the models have {expected}",
                hint=hint,
                subject=dataset,
            )
    for number, (here, there) in enumerate(zip(found, names or found, strict=True)):
        if here != there:
            raise IncompatibleError(
                f"{dataset}: class {number} is {here!r}, but {there!r} in the models", hint=hint, subject=dataset
            )
