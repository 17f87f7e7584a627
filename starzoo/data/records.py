"""Labeled images as they are stored: embedded digits, a Hub data set or a local folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from starzoo.config import DataConfig
from starzoo.data.class_names import list_names
from starzoo.data.columns import find_image_column, read_labels
from starzoo.data.fingerprint_cache import get_or_compute_fingerprint, stamp_folder
from starzoo.data.hub_datasets import LoadedSplits, load_splits, warn_once
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.files import read_file
from starzoo.text import pluralize

__all__ = ["ImageFile", "RawSplit", "RawTask", "open_data", "open_unlabeled"]

Integers = np.ndarray[Any, np.dtype[np.int64]]

_DIGITS_TEST_SIZE = 360  # a fifth; 36 of every digit
_DIGITS_SEED = 0
_ROWS_PER_READ = 256
_MAX_SHARED = 0.01  # of the test images
_MAX_IMAGE_BYTES = 2**30


@dataclass(frozen=True)
class ImageFile:
    """An encoded image."""

    description: str  # the data set, the split and the image, for messages
    content: bytes


@dataclass(frozen=True, kw_only=True)
class RawSplit:
    """Encoded images with their labels."""

    dataset: str
    name: str
    rows: Any  # a `datasets.Dataset` that does not decode its images
    image_column: str  # of bytes, paths, or dicts of both
    labels: Integers
    numbers: Integers  # of the images in the whole split, for messages
    image_folders: Sequence[Path] = ()  # that image files may lie in; relative paths start in the first

    def __len__(self) -> int:
        return len(self.labels)

    def files(self, indices: Sequence[int]) -> Iterator[ImageFile]:
        """Read the images of some rows."""
        for index, cell in zip(indices, self.rows[indices][self.image_column], strict=True):
            description = f"{self.dataset}: image {self.numbers[index]} of split {self.name!r}"
            content, path = _content_and_path(cell)
            if path is not None:
                description = f"{description} ({Path(path).name})"
            if content is None:
                content = self._read(path, description)
            yield ImageFile(description, content)

    def update_hash(self, digest: hashlib._Hash) -> list[int]:
        """Feed labels and images to a hash, and return a hash of every image."""
        digest.update(self.labels.astype("<i8").tobytes())
        hashes = []
        for start in range(0, len(self), _ROWS_PER_READ):
            for file in self.files(range(start, min(start + _ROWS_PER_READ, len(self)))):
                digest.update(len(file.content).to_bytes(8, "little"))
                digest.update(file.content)
                hashes.append(hash(file.content))
        return hashes

    def hash_rows(self, rows: Integers) -> str:
        """Return the SHA-256 of the labels and the image files of some rows."""
        digest = hashlib.sha256(self.labels[rows].astype("<i8").tobytes())
        for start in range(0, len(rows), _ROWS_PER_READ):
            for file in self.files(rows[start : start + _ROWS_PER_READ].tolist()):
                digest.update(hashlib.sha256(file.content).digest())
        return digest.hexdigest()

    def _read(self, path: str | None, subject: str) -> bytes:
        if path is None:
            raise UntrustedInputError(subject, "is missing", hint="repair the data set")
        if not self.image_folders:
            raise UntrustedInputError(
                subject,
                "expected the image itself in the table, got the path of a file",
                hint="use a data set whose tables hold their images",
            )
        return read_file(self.image_folders[0] / path, _MAX_IMAGE_BYTES, inside=self.image_folders, subject=subject)


@dataclass(frozen=True, kw_only=True)
class RawTask:
    """A classification task with encoded images."""

    class_names: tuple[str, ...]  # in the order of the labels
    train: RawSplit
    test: RawSplit
    validation: RawSplit | None = None  # the training images that a subset leaves out
    revision: str | None = None  # the commit on the Hub
    is_numbered: bool = False  # whether the class names are whole numbers, because the labels have no names
    origin: Path | str | None = None  # the folder, or the data set and its commit and configuration

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the class names, labels and image files of both splits, in hexadecimal digits."""
        key = self._key
        fingerprint, shared = get_or_compute_fingerprint(key, self._read_all) if key else self._read_all()
        dataset, count = self.test.dataset, len(self.test)
        problem = f"{shared} of {pluralize(count, 'test image')} are also training images"
        if shared > _MAX_SHARED * count:
            raise UsageError(dataset, problem, hint="choose splits that share no images, or remove these")
        if shared:
            warn_once(f"{dataset}: {problem}")
        return fingerprint

    def _read_all(self) -> tuple[str, int]:
        """Read all images; return the fingerprint, and how many test images are also training images."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        train, test = set(self.train.update_hash(digest)), self.test.update_hash(digest)
        return digest.hexdigest(), sum(image in train for image in test)

    @property
    def _key(self) -> str | None:
        """What decides the fingerprint without a look at the images; None for the embedded digits."""
        if self.origin is None:
            return None
        origin = stamp_folder(self.origin) if isinstance(self.origin, Path) else self.origin
        splits = [
            (
                split.name,
                split.image_column,
                hashlib.sha256(split.numbers.tobytes() + split.labels.tobytes()).hexdigest(),
            )
            for split in (self.train, self.test)
        ]
        return repr([origin, self.class_names, splits])


def open_data(config: DataConfig, *, seed: int = 0) -> RawTask:
    """Open a labeled data set without decoding an image."""
    splits = _load_splits(config, config.train_split, config.test_split)
    train_name, test_name = splits.names
    hint = "name two splits; parts of one are written train[:80%] and train[80%:]"
    if train_name == test_name:
        raise UsageError(config.dataset, f"{train_name!r} is both the training and the test split", hint=hint)
    if _share_images(train_name, test_name):
        raise UsageError(config.dataset, f"the splits {train_name!r} and {test_name!r} share images", hint=hint)
    image_column = find_image_column(splits, config)
    class_names, (train_labels, test_labels), is_numbered = read_labels(splits, config, image_column)
    train = _raw_split(splits, 0, config.dataset, image_column, train_labels)
    test = _raw_split(splits, 1, config.dataset, image_column, test_labels)
    chosen = _balanced_subset(train, config.train_size, seed)
    task = RawTask(
        class_names=class_names,
        train=_select(train, chosen),
        test=_select(test, _balanced_subset(test, config.test_size, seed)),
        validation=_select(train, np.setdiff1d(train.numbers, chosen)) if len(chosen) < len(train) else None,
        revision=splits.revision,
        is_numbered=is_numbered,
        origin=splits.folder or (splits.revision and f"{config.dataset}@{splits.revision} {config.name}"),
    )
    _check_classes(task, config)
    return task


def open_unlabeled(config: DataConfig, *, seed: int = 0) -> RawSplit:
    """Open the test images of a data set that may have no labels: all have the label 0."""
    splits = _load_splits(config, config.test_split)
    image_column, [rows] = find_image_column(splits, config), splits.rows
    if len(rows) == 0:
        raise UsageError(f"{config.dataset}: split {splits.names[0]!r}", "has no images", hint="choose another split")
    split = _raw_split(splits, 0, config.dataset, image_column, np.zeros(len(rows), dtype=np.int64))
    return _select(split, _balanced_subset(split, config.test_size, seed))


def _raw_split(splits: LoadedSplits, index: int, dataset: str, image_column: str, labels: Integers) -> RawSplit:
    import datasets

    rows = splits.rows[index].select_columns([image_column])
    if isinstance(rows.features[image_column], datasets.Image):
        rows = rows.cast_column(image_column, datasets.Image(decode=False))
    return RawSplit(
        dataset=dataset,
        name=splits.names[index],
        rows=rows,
        image_column=image_column,
        labels=labels,
        numbers=np.arange(len(labels)),
        image_folders=splits.image_folders,
    )


def _select(split: RawSplit, numbers: Integers) -> RawSplit:
    return replace(split, rows=split.rows.select(numbers), labels=split.labels[numbers], numbers=numbers)


def _check_classes(task: RawTask, config: DataConfig) -> None:
    """Check that both splits have images of the same classes; a chosen subset may lack some."""
    names, dataset, train, test = task.class_names, config.dataset, task.train, task.test
    in_train, in_test = (np.bincount(split.labels, minlength=len(names)) > 0 for split in (train, test))
    pairs = (train, test, in_test & ~in_train, config.train_size), (test, train, in_train & ~in_test, config.test_size)
    for split, other, is_missing, size in pairs:
        missing = [names[label] for label in np.flatnonzero(is_missing)]
        problem = (
            f"split {split.name!r} has no images of {len(missing)} of {len(names)} classes"
            f"{list_names(missing)}, of which split {other.name!r} has some"
        )
        if missing and size is None:
            raise UsageError(
                dataset,
                problem,
                hint="choose splits with all classes, or shuffle the rows of the table before you cut it into parts; "
                "with train_size or test_size a split is taken as it is",
            )
        if missing:
            warn_once(f"{dataset}: {problem}")
    if absent := [names[label] for label in np.flatnonzero(~(in_train | in_test))]:
        warn_once(f"{dataset}: no split has images of {len(absent)} of {len(names)} classes{list_names(absent)}")


def _content_and_path(cell: Any) -> tuple[bytes | None, str | None]:
    """Return the bytes and the path of an image from a cell of bytes, of a path, or of a dict of both."""
    match cell:
        case bytes():
            return cell, None
        case str():
            return None, cell or None
        case dict():
            path = cell.get("path")
            return cell["bytes"], path if isinstance(path, str) and path else None
    return None, None


def _load_splits(config: DataConfig, *names: str) -> LoadedSplits:
    if config.dataset != "digits":
        return load_splits(config, names)
    splits = _load_digits()
    if not splits.keys() >= set(names):
        raise UsageError("digits", "has the splits 'train' and 'test'", hint="leave the splits out")
    return LoadedSplits([splits[name] for name in names], names)


@cache
def _load_digits() -> dict[str, Any]:
    """Load scikit-learn's 1,797 handwritten digits of 8x8 gray pixels: 1,437 to train, 360 to test."""
    import datasets
    from sklearn.datasets import load_digits

    digits = load_digits()
    features = datasets.Features({
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=[str(name) for name in digits.target_names]),
    })
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # stored as counts from 0 to 16
    rows = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(image) for image in pixels], "label": digits.target}, features=features
    )
    test = _balanced_rows(digits.target, _DIGITS_TEST_SIZE, _DIGITS_SEED)
    return {"train": rows.select(np.setdiff1d(np.arange(len(rows)), test)), "test": rows.select(test)}


def _share_images(train: str, test: str) -> bool:
    """Return whether two instructions, `train+extra` and `train[90%:]`, certainly share images; parts may."""
    for part, other in product(train.split("+"), test.split("+")):
        (name, bracket, _), (other_name, other_bracket, _) = part.strip().partition("["), other.strip().partition("[")
        if name == other_name and not (bracket and other_bracket):
            return True
    return False


def _balanced_subset(split: RawSplit, size: int | None, seed: int) -> Integers:
    """Return the rows of a subset of `size` images, or all rows where there is no size."""
    if size is None:
        return split.numbers
    if size > len(split):
        subject = f"{split.dataset}: split {split.name!r}"
        raise UsageError(subject, f"{size} images asked for, {len(split)} there", hint="ask for fewer")
    return _balanced_rows(split.labels, size, seed)


def _balanced_rows(labels: Integers, size: int, seed: int) -> Integers:
    """Draw rows with equally many images of every class, as far as there are enough, in ascending order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)  # of an image among those of its class
    for label in np.unique(labels):
        is_label = labels[order] == label
        rank[is_label] = np.arange(is_label.sum())
    return np.sort(order[np.argsort(rank, kind="stable")[:size]])
