"""Find the image and label columns of a data set, and turn labels into classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from starzoo.config import DataConfig
from starzoo.data.class_names import list_names
from starzoo.data.hub_datasets import LoadedSplits, warn_once
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.text import pluralize

__all__ = ["find_image_column", "read_labels"]

Integers = np.ndarray[Any, np.dtype[np.int64]]
FeatureTest = Callable[[Any], bool]


def find_image_column(splits: LoadedSplits, config: DataConfig) -> str:
    """Find the column of images: the named one, else the only one of images, of dicts with bytes, or of bytes."""
    tests = [_is_image, _is_image_dict, _is_binary]
    if config.image_column and splits.folder:
        tests.append(_is_text)
    return _find_column(splits, config.dataset, "image", config.image_column, tests)


def read_labels(
    splits: LoadedSplits, config: DataConfig, image_column: str
) -> tuple[tuple[str, ...], list[Integers], bool]:
    """Return the class names, the labels of every split, and whether the names are whole numbers.

    The values of a column of text or numbers are classes in sorted order.
    """
    column = _find_column(
        splits, config.dataset, "label", config.label_column, [_is_class_label, _is_value], exclude=image_column
    )
    subjects = [f"{config.dataset}: split {name!r}" for name in splits.names]
    values = [_read_values(rows, column, subject) for rows, subject in zip(splits.rows, subjects, strict=True)]
    feature = splits.rows[0].features[column]
    if _is_class_label(feature):
        names = tuple(feature.names)
        for split_values, subject in zip(values, subjects, strict=True):
            if (largest := pc.max(split_values).as_py()) >= len(names):
                raise UntrustedInputError(
                    subject,
                    f"has the label {largest}, but only {pluralize(len(names), 'class name')}",
                    hint="repair the data set",
                )
        return names, [_to_integers(split_values) for split_values in values], False
    classes = pc.unique(pa.chunked_array([chunk for split_values in values for chunk in split_values.chunks]))
    classes = classes.take(pc.array_sort_indices(classes))
    labels = [_to_integers(pc.index_in(split_values, classes)) for split_values in values]
    if pa.types.is_floating(classes.type) and pc.all(pc.equal(classes, pc.floor(classes))).as_py():
        classes = classes.cast(pa.int64())  # pandas turns a column of whole numbers with gaps into floats
    names = tuple(map(str, classes.to_pylist()))
    count = pluralize(len(names), "class", "classes")
    warn_once(f"{config.dataset}: the values of column {column!r} are {count}{list_names(names)}")
    return names, labels, pa.types.is_integer(classes.type)


def _find_column(
    splits: LoadedSplits,
    dataset: str,
    word: str,
    wanted: str | None,
    tests: Sequence[FeatureTest],
    exclude: str | None = None,
) -> str:
    """Return the wanted column, or of those that pass the first possible test the only one or the one called `word`."""
    features: dict[str, Any] = splits.rows[0].features
    allowed = {name: feature for name, feature in features.items() if name != exclude}
    if wanted and wanted in allowed and any(test(allowed[wanted]) for test in tests):
        return wanted
    visible = {name: feature for name, feature in allowed.items() if not name.startswith("__")}
    by_test = ([name for name, feature in visible.items() if test(feature)] for test in tests)
    columns: list[str] = next(filter(None, by_test), [])
    if wanted is None and word in columns:
        return word
    if wanted is None and len(columns) == 1:
        return columns[0]
    expected = f"a column {wanted!r} of {word}s" if wanted else f"one column of {word}s"
    hint = f"use a data set with a column of {word}s"
    if columns:
        hint = f"set {word}_column to one of {', '.join(columns)}"
    listing = ", ".join(f"{name} ({_type_name(feature)})" for name, feature in features.items())
    raise UsageError(dataset, f"expected {expected}, got {listing}", hint=hint)


def _read_values(rows: Any, column: str, subject: str) -> pa.ChunkedArray:
    """Read a column of labels without gaps, numbers as int64 or float64."""
    values = rows.select_columns([column]).with_format("arrow")[:][column]
    if len(values) == 0:
        raise UsageError(subject, "has no images", hint="choose another split")
    feature, missing = rows.features[column], pc.is_null(values, nan_is_null=True)
    if _is_text(feature):
        values = pc.utf8_normalize(values, form="NFC")
        no_label = pc.equal(values, "")
    else:
        values = values.cast(pa.float64() if pa.types.is_floating(values.type) else pa.int64())
        no_label = pc.less(values, 0) if _is_class_label(feature) else pc.equal(values, -1)
    if unlabeled := pc.sum(pc.or_(missing, no_label.fill_null(True))).as_py():
        raise UsageError(subject, f"{pluralize(unlabeled, 'image')} without a label", hint="choose another split")
    return values


def _to_integers(values: pa.ChunkedArray) -> Integers:
    labels: Integers = values.to_numpy().astype(np.int64)
    return labels


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image"


def _is_image_dict(feature: Any) -> bool:
    """Return whether a column holds images as `datasets` does, but without its type: pandas writes such files."""
    return isinstance(feature, dict) and _is_binary(feature.get("bytes"))


def _is_binary(feature: Any) -> bool:
    return _type_name(feature) in {"binary", "large_binary"}


def _is_class_label(feature: Any) -> bool:
    return type(feature).__name__ == "ClassLabel"


def _is_text(feature: Any) -> bool:
    return _type_name(feature) in {"string", "large_string"}


def _is_value(feature: Any) -> bool:
    return _is_text(feature) or _type_name(feature).startswith(("int", "uint", "float", "bool"))


def _type_name(feature: Any) -> str:
    return str(getattr(feature, "dtype", "")) if type(feature).__name__ == "Value" else type(feature).__name__
