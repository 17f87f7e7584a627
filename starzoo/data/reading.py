"""Labelled images as they are stored: the embedded digits, a Hub data set or a local folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from starzoo.config import DataConfig
from starzoo.data.opening import Splits, load_splits
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.wording import counted

__all__ = ["ImageFile", "Records", "StoredData", "open_data", "open_images"]

Integers = np.ndarray[Any, np.dtype[np.int64]]

_DIGITS_TEST_SIZE = 360  # a fifth; 36 of every digit
_DIGITS_SEED = 0
_READ_AT_ONCE = 256  # rows


@dataclass(frozen=True)
class ImageFile:
    """One encoded image.

    Attributes:
        where: Which image of which split it is, for messages.
        dataset: The name of the data set.
        content: The file.
    """

    where: str
    dataset: str
    content: bytes


@dataclass(frozen=True, kw_only=True)
class Records:
    """One split: encoded images with their labels.

    Attributes:
        dataset: The name of the data set, for messages.
        name: The name of the split.
        rows: The rows, a `datasets.Dataset` whose images are not decoded.
        image_column: Where the image is.
        labels: The class of every row, an int64 array.
        numbers: Which image of the whole split every row is, for messages; an int64 array.
    """

    dataset: str
    name: str
    rows: Any
    image_column: str
    labels: Integers
    numbers: Integers

    def __len__(self) -> int:
        return len(self.labels)

    def files(self, indices: Sequence[int]) -> Iterator[ImageFile]:
        """Read the files of some rows.

        Args:
            indices: Row numbers.

        Yields:
            One image file per index.

        Raises:
            UntrustedInputError: A row has no image, or its file is gone.
        """
        for index, cell in zip(indices, self.rows[indices][self.image_column], strict=True):
            where = f"{self.dataset}: image {self.numbers[index]} of split {self.name!r}"
            content, path = (cell["bytes"], cell["path"]) if cell else (None, None)
            if path is not None:
                where = f"{where} ({Path(path).name})"
            if content is None:
                if path is None or not Path(path).is_file():  # a device could be read for ever
                    raise UntrustedInputError(f"{where} is missing", hint="repair the data set", subject=self.dataset)
                content = Path(path).read_bytes()
            yield ImageFile(where, self.dataset, content)

    def update(self, digest: hashlib._Hash) -> None:
        """Feed the content of the split, in its order, to a hash.

        Args:
            digest: What is fed.
        """
        digest.update(self.labels.astype("<i8").tobytes())
        for start in range(0, len(self), _READ_AT_ONCE):
            for file in self.files(range(start, min(start + _READ_AT_ONCE, len(self)))):
                digest.update(len(file.content).to_bytes(8, "little"))
                digest.update(file.content)


@dataclass(frozen=True, kw_only=True)
class StoredData:
    """A classification task as it is stored.

    Attributes:
        class_names: The name of every class, in the order of the labels.
        train: The training split, or its subset.
        test: The test split, or its subset.
        validation: What a subset leaves of the training split; None where it leaves nothing.
        revision: The commit of the Hub that it is from; None for what is not from the Hub.
    """

    class_names: tuple[str, ...]
    train: Records
    test: Records
    validation: Records | None = None
    revision: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over class names, labels and image files of both splits, in hexadecimal digits."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        self.train.update(digest)
        self.test.update(digest)
        return digest.hexdigest()


def open_data(config: DataConfig, *, seed: int = 0) -> StoredData:
    """Find a data set, its columns and its splits, without decoding an image.

    Args:
        config: Names all of them; columns that it does not name are found by their type.
        seed: Draws the subsets of `train_size` and `test_size`.

    Returns:
        The task.

    Raises:
        UsageError: No such data set, configuration, split or column, or fewer images than asked for.
    """
    opened = _read_splits(config, config.train_split, config.test_split)
    train, test = opened.rows
    if train.features != test.features:
        raise UsageError(
            f"{config.dataset}: the splits {config.train_split!r} and {config.test_split!r} have different columns",
            hint="choose two splits of one task",
            subject=config.dataset,
        )
    image_column = _column(train.features, "Image", config.image_column, config.dataset, "image_column")
    label_column = _column(train.features, "ClassLabel", config.label_column, config.dataset, "label_column")
    rows = {config.train_split: (train, config.train_size), config.test_split: (test, config.test_size)}
    if len(rows) == 1:
        raise UsageError(
            f"{config.dataset}: {config.train_split!r} is both the training and the test split",
            hint="name two splits; parts of one are written train[:80%] and train[80%:]",
            subject=config.dataset,
        )
    if _share_images(config.train_split, config.test_split):
        raise UsageError(
            f"{config.dataset}: the splits {config.train_split!r} and {config.test_split!r} share images",
            hint="parts of one are written train[:80%] and train[80%:]",
            subject=config.dataset,
        )
    names = tuple(train.features[label_column].names)
    splits, rest = [], None
    for name, (split, size) in rows.items():
        labels = _read_labels(split, label_column, names, f"{config.dataset}: split {name!r}")
        images = _undecoded(split.select_columns([image_column]), image_column)
        select = partial(_select, images, labels, dataset=config.dataset, name=name, image_column=image_column)
        every = np.arange(len(labels))
        numbers = every if size is None else _balanced_subset(labels, size, seed, f"{config.dataset}: split {name!r}")
        splits.append(select(numbers))
        if name == config.train_split and len(numbers) < len(every):
            rest = select(np.setdiff1d(every, numbers))
    train, test = splits
    return StoredData(class_names=names, train=train, test=test, validation=rest, revision=opened.revision)


def open_images(config: DataConfig, *, seed: int = 0) -> Records:
    """The images of the test split alone, whatever their labels and whether there are any: all of label 0.

    Args:
        config: Names the data set, its split and the column, which is found by its type if it is not named.
        seed: Draws the subset of `test_size`.

    Returns:
        The images.

    Raises:
        UsageError: No such data set, configuration, split or column, or fewer images than asked for.
    """
    name, where = config.test_split, f"{config.dataset}: split {config.test_split!r}"
    (rows,) = _read_splits(config, name).rows
    image_column = _column(rows.features, "Image", config.image_column, config.dataset, "image_column")
    images, labels = _undecoded(rows.select_columns([image_column]), image_column), np.zeros(len(rows), dtype=np.int64)
    if len(labels) == 0:
        raise UsageError(f"{where}: has no images", hint="choose another split", subject=where)
    some = config.test_size
    numbers = np.arange(len(labels)) if some is None else _balanced_subset(labels, some, seed, where)
    return _select(images, labels, numbers, dataset=config.dataset, name=name, image_column=image_column)


def _select(images: Any, labels: Integers, numbers: Integers, *, dataset: str, name: str, image_column: str) -> Records:
    return Records(
        dataset=dataset,
        name=name,
        rows=images.select(numbers),
        image_column=image_column,
        labels=labels[numbers],
        numbers=numbers,
    )


def _read_splits(config: DataConfig, *names: str) -> Splits:
    if config.dataset != "digits":
        return load_splits(config, names)
    splits = _read_digits()
    if not splits.keys() >= set(names):
        raise UsageError("digits: has the splits 'train' and 'test'", hint="leave the splits out", subject="digits")
    return Splits([splits[name] for name in names])


def _read_digits() -> dict[str, Any]:
    """scikit-learn's 1,797 handwritten digits of 8x8 grey pixels: 1,437 to train, 360 to test."""
    import datasets
    from sklearn.datasets import load_digits

    digits = load_digits()
    features = datasets.Features({
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=[str(name) for name in digits.target_names]),
    })
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # stored as counts from 0 to 16
    rows = datasets.Dataset.from_dict(
        {"image": [_png(image) for image in pixels], "label": digits.target}, features=features
    )
    test = _balanced_subset(digits.target, _DIGITS_TEST_SIZE, _DIGITS_SEED, "digits")
    return {"train": rows.select(np.setdiff1d(np.arange(len(rows)), test)), "test": rows.select(test)}


def _png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _column(features: Any, kind: str, asked: str | None, dataset: str, option: str) -> str:
    """The column that is asked for, or the only one of its type."""
    found = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if asked in found:
        return str(asked)
    if asked is None and len(found) == 1:
        return str(found[0])
    listing = ", ".join(f"{name} ({_type_name(feature)})" for name, feature in features.items())
    problem = f"no {kind} column {asked!r}" if asked else f"{len(found) or 'no'} {kind} columns"
    hint = f"set {option} to one of type {kind}" if found else f"use a data set with a column of type {kind}"
    raise UsageError(f"{dataset}: {problem} among {listing}", hint=hint, subject=dataset)


def _type_name(feature: Any) -> str:
    return str(getattr(feature, "dtype", "")) if type(feature).__name__ == "Value" else type(feature).__name__


def _share_images(one: str, other: str) -> bool:
    """Whether two splits, as `train+extra` and `train[90%:]`, are sure to share images; two parts may or may not."""
    whole, parts = zip(*(_split_parts(text) for text in (one, other)), strict=True)
    return any(whole[here] & (whole[there] | parts[there]) for here, there in ((0, 1), (1, 0)))


def _split_parts(text: str) -> tuple[set[str], set[str]]:
    """The splits that an instruction of `datasets` takes as a whole, and those of which it takes a part."""
    names = [part.strip() for part in text.split("+")]
    return {name for name in names if "[" not in name}, {name.partition("[")[0] for name in names if "[" in name}


def _read_labels(split: Any, column: str, names: Sequence[str], where: str) -> Integers:
    values = split.select_columns([column]).with_format("arrow")[:][column]
    labels: Integers = values.fill_null(-1).to_numpy().astype(np.int64)
    if len(labels) == 0:
        raise UsageError(f"{where}: has no images", hint="choose another split", subject=where)
    unlabelled = int((labels < 0).sum())
    if unlabelled:
        raise UsageError(
            f"{where}: {counted(unlabelled, 'image')} without a label", hint="choose another split", subject=where
        )
    if (last := int(labels.max())) >= len(names):
        raise UntrustedInputError(
            f"{where}: has the label {last}, but only {counted(len(names), 'class name')}",
            hint="repair the data set",
            subject=where,
        )
    return labels


def _balanced_subset(labels: Integers, size: int, seed: int, where: str) -> Integers:
    """Rows of a subset with equally many images of every class, as far as there are enough, in ascending order."""
    if size > len(labels):
        raise UsageError(f"{where}: {size} images asked for, {len(labels)} there", hint="ask for fewer", subject=where)
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)  # how many images of its class come before it
    for label in np.unique(labels):
        members = labels[order] == label
        turn[members] = np.arange(members.sum())
    return np.sort(order[np.argsort(turn, kind="stable")[:size]])


def _undecoded(rows: Any, image_column: str) -> Any:
    import datasets

    return rows.cast_column(image_column, datasets.Image(decode=False))
