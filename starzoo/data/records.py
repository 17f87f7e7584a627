"""Labeled images as they are stored: embedded digits, a Hub data set or a local folder."""

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
from starzoo.data.class_names import list_names
from starzoo.data.columns import find_image_column, read_labels
from starzoo.data.hub_datasets import LoadedSplits, load_splits, warn_once
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.files import read_file
from starzoo.text import pluralize

__all__ = ["ImageFile", "RawSplit", "RawTask", "open_data", "open_unlabeled"]

Integers = np.ndarray[Any, np.dtype[np.int64]]

_DIGITS_TEST_SIZE = 360  # a fifth; 36 of every digit
_DIGITS_SEED = 0
_READ_AT_ONCE = 256  # rows
_MOST_SHARED = 0.01  # of the test images
_MOST_BYTES = 2**30  # of an image


@dataclass(frozen=True)
class ImageFile:
    """One encoded image.

    Attributes:
        description: Which image of which split it is, for messages.
        content: The file.
    """

    description: str
    content: bytes


@dataclass(frozen=True, kw_only=True)
class RawSplit:
    """One split: encoded images with their labels.

    Attributes:
        dataset: The name of the data set, for messages.
        name: The name of the split.
        rows: The rows, a `datasets.Dataset` whose images are not decoded.
        image_column: Where the image is: its bytes, its path, or a dict of both.
        labels: The class of every row, an int64 array.
        numbers: Which image of the whole split every row is, for messages; an int64 array.
        image_folders: The folders in which images may lie as files of their own; relative paths start in the first.
    """

    dataset: str
    name: str
    rows: Any
    image_column: str
    labels: Integers
    numbers: Integers
    image_folders: Sequence[Path] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def files(self, indices: Sequence[int]) -> Iterator[ImageFile]:
        """Read the files of some rows."""
        for index, cell in zip(indices, self.rows[indices][self.image_column], strict=True):
            where = f"{self.dataset}: image {self.numbers[index]} of split {self.name!r}"
            content, path = _content_and_path(cell)
            if path is not None:
                where = f"{where} ({Path(path).name})"
            if content is None and path is None:
                raise UntrustedInputError(where, "is missing", hint="repair the data set")
            if content is None:
                content = self._read(path or "", where)
            yield ImageFile(where, content)

    def update_hash(self, digest: hashlib._Hash) -> list[int]:
        """Feed the content of the split, in its order, to a hash."""
        digest.update(self.labels.astype("<i8").tobytes())
        found = []
        for start in range(0, len(self), _READ_AT_ONCE):
            for file in self.files(range(start, min(start + _READ_AT_ONCE, len(self)))):
                digest.update(len(file.content).to_bytes(8, "little"))
                digest.update(file.content)
                found.append(hash(file.content))
        return found

    def _read(self, path: str, where: str) -> bytes:
        if not self.image_folders:
            raise UntrustedInputError(
                where,
                "expected the image itself in the table, got the path of a file",
                hint="use a data set whose tables hold their images",
            )
        return read_file(self.image_folders[0] / path, _MOST_BYTES, inside=self.image_folders, subject=where)


@dataclass(frozen=True, kw_only=True)
class RawTask:
    """A classification task as it is stored.

    Attributes:
        class_names: The name of every class, in the order of the labels.
        train: The training split, or its subset.
        test: The test split, or its subset.
        validation: What a subset leaves of the training split; None where it leaves nothing.
        revision: The commit of the Hub that it is from; None for what is not from the Hub.
        is_numbered: Whether the labels are whole numbers without names, which are their own names then.
    """

    class_names: tuple[str, ...]
    train: RawSplit
    test: RawSplit
    validation: RawSplit | None = None
    revision: str | None = None
    is_numbered: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over class names, labels and image files of both splits, in hexadecimal digits."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        train, test = set(self.train.update_hash(digest)), self.test.update_hash(digest)
        shared, dataset = sum(image in train for image in test), self.test.dataset
        what = f"{shared} of {pluralize(len(test), 'test image')} are also training images"
        if shared > _MOST_SHARED * len(test):
            raise UsageError(dataset, what, hint="choose splits that share no images, or remove these")
        if shared:
            warn_once(f"{dataset}: {what}")
        return digest.hexdigest()


def open_data(config: DataConfig, *, seed: int = 0) -> RawTask:
    """Find a data set, its columns and its splits, without decoding an image."""
    opened, dataset = _read_splits(config, config.train_split, config.test_split), config.dataset
    train_name, test_name = opened.names
    if train_name == test_name:
        raise UsageError(
            dataset,
            f"{train_name!r} is both the training and the test split",
            hint="name two splits; parts of one are written train[:80%] and train[80%:]",
        )
    if _share_images(train_name, test_name):
        raise UsageError(
            dataset,
            f"the splits {train_name!r} and {test_name!r} share images",
            hint="parts of one are written train[:80%] and train[80%:]",
        )
    image_column = find_image_column(opened, config)
    names, both, is_numbered = read_labels(opened, config, image_column)
    splits, rest = [], None
    for rows, name, labels, size in zip(
        opened.rows, opened.names, both, (config.train_size, config.test_size), strict=True
    ):
        select = partial(_select, opened, rows, labels, dataset=dataset, name=name, image_column=image_column)
        every = np.arange(len(labels))
        numbers = every if size is None else _balanced_subset(labels, size, seed, f"{dataset}: split {name!r}")
        splits.append(select(numbers))
        if name == train_name and len(numbers) < len(every):
            rest = select(np.setdiff1d(every, numbers))
    _check_classes(splits, names, (config.train_size, config.test_size))
    train, test = splits
    return RawTask(
        class_names=names, train=train, test=test, validation=rest, revision=opened.revision, is_numbered=is_numbered
    )


def open_unlabeled(config: DataConfig, *, seed: int = 0) -> RawSplit:
    """The images of the test split alone, whatever their labels and whether there are any: all of label 0."""
    opened = _read_splits(config, config.test_split)
    [rows], [name] = opened.rows, opened.names
    where = f"{config.dataset}: split {name!r}"
    image_column, labels = find_image_column(opened, config), np.zeros(len(rows), dtype=np.int64)
    if len(labels) == 0:
        raise UsageError(where, "has no images", hint="choose another split")
    some = config.test_size
    numbers = np.arange(len(labels)) if some is None else _balanced_subset(labels, some, seed, where)
    return _select(opened, rows, labels, numbers, dataset=config.dataset, name=name, image_column=image_column)


def _select(
    opened: LoadedSplits, rows: Any, labels: Integers, numbers: Integers, *, dataset: str, name: str, image_column: str
) -> RawSplit:
    import datasets

    images = rows.select_columns([image_column])
    if isinstance(images.features[image_column], datasets.Image):
        images = images.cast_column(image_column, datasets.Image(decode=False))
    return RawSplit(
        dataset=dataset,
        name=name,
        rows=images.select(numbers),
        image_column=image_column,
        labels=labels[numbers],
        numbers=numbers,
        image_folders=opened.image_folders,
    )


def _check_classes(splits: Sequence[RawSplit], names: Sequence[str], sizes: Sequence[int | None]) -> None:
    """Make sure that both splits have images of the same classes; a subset that was asked for may lack some."""
    seen = [np.bincount(split.labels, minlength=len(names)) > 0 for split in splits]
    for split, other, here, there, size in zip(splits, reversed(splits), seen, reversed(seen), sizes, strict=True):
        missing = [name for name, lacks in zip(names, there & ~here, strict=True) if lacks]
        what = (
            f"split {split.name!r} has no images of {len(missing)} of {len(names)} classes"
            f"{list_names(missing)}, of which split {other.name!r} has some"
        )
        if missing and size is None:
            raise UsageError(
                split.dataset,
                what,
                hint="choose splits with all classes; write the rows of a table in random order before you cut it into "
                "parts; train_size or test_size takes a split as it is",
            )
        if missing:
            warn_once(f"{split.dataset}: {what}")
    if absent := [name for name, lacks in zip(names, ~(seen[0] | seen[1]), strict=True) if lacks]:
        warn_once(
            f"{splits[0].dataset}: no split has images of {len(absent)} of {len(names)} classes{list_names(absent)}"
        )


def _content_and_path(cell: Any) -> tuple[bytes | None, str | None]:
    """The bytes and the path of an image as a column may hold it: a dict of both, or one of the two."""
    match cell:
        case bytes():
            return cell, None
        case str():
            return None, cell or None
        case dict():
            path = cell.get("path")
            return cell["bytes"], path if isinstance(path, str) and path else None
    return None, None


def _read_splits(config: DataConfig, *names: str) -> LoadedSplits:
    if config.dataset != "digits":
        return load_splits(config, names)
    splits = _read_digits()
    if not splits.keys() >= set(names):
        raise UsageError("digits", "has the splits 'train' and 'test'", hint="leave the splits out")
    return LoadedSplits([splits[name] for name in names], names)


def _read_digits() -> dict[str, Any]:
    """scikit-learn's 1,797 handwritten digits of 8x8 gray pixels: 1,437 to train, 360 to test."""
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


def _share_images(one: str, other: str) -> bool:
    """Whether two splits, as `train+extra` and `train[90%:]`, are sure to share images; two parts may or may not."""
    whole, parts = zip(*(_split_parts(text) for text in (one, other)), strict=True)
    return any(whole[here] & (whole[there] | parts[there]) for here, there in ((0, 1), (1, 0)))


def _split_parts(text: str) -> tuple[set[str], set[str]]:
    """The splits that an instruction of `datasets` takes as a whole, and those of which it takes a part."""
    names = [part.strip() for part in text.split("+")]
    return {name for name in names if "[" not in name}, {name.partition("[")[0] for name in names if "[" in name}


def _balanced_subset(labels: Integers, size: int, seed: int, where: str) -> Integers:
    """Rows of a subset with equally many images of every class, as far as there are enough, in ascending order."""
    if size > len(labels):
        raise UsageError(where, f"{size} images asked for, {len(labels)} there", hint="ask for fewer")
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)  # how many images of its class come before it
    for label in np.unique(labels):
        members = labels[order] == label
        turn[members] = np.arange(members.sum())
    return np.sort(order[np.argsort(turn, kind="stable")[:size]])
