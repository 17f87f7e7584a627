"""Find the image and label columns of a data set, and turn labels into classes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
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
Kind = Callable[[Any], bool]


def find_image_column(opened: LoadedSplits, config: DataConfig) -> str:
    """Find the column of images: the named one, else the only one of images, of dicts with bytes, or of bytes."""
    kinds = [_is_image, _is_image_dict, _is_binary]
    if config.image_column and opened.folder:
        kinds.append(_is_text)
    return _find_column(opened, config.dataset, "image", config.image_column, kinds)


def read_labels(
    opened: LoadedSplits, config: DataConfig, image_column: str
) -> tuple[tuple[str, ...], list[Integers], bool]:
    """The class of every image: of a column of classes, or of text or numbers, whose sorted values are classes then."""
    column = _find_column(
        opened, config.dataset, "label", config.label_column, [_is_classes, _is_value], but=image_column
    )
    wheres = [f"{config.dataset}: split {name!r}" for name in opened.names]
    values = [_read_values(rows, column, where) for rows, where in zip(opened.rows, wheres, strict=True)]
    feature = opened.rows[0].features[column]
    if _is_classes(feature):
        names = tuple(feature.names)
        for each, where in zip(values, wheres, strict=True):
            if (last := pc.max(each).as_py()) >= len(names):
                raise UntrustedInputError(
                    where,
                    f"has the label {last}, but only {pluralize(len(names), 'class name')}",
                    hint="repair the data set",
                )
        return names, [_integers(each) for each in values], False
    classes = pc.unique(pa.chunked_array([chunk for each in values for chunk in each.chunks]))
    classes = classes.take(pc.array_sort_indices(classes))
    labels = [_integers(pc.index_in(each, classes)) for each in values]
    if pa.types.is_floating(classes.type) and pc.all(pc.equal(classes, pc.floor(classes))).as_py():
        classes = classes.cast(pa.int64())  # numbers with gaps, which were refused, come as floats
    names = tuple(map(str, classes.to_pylist()))
    count = pluralize(len(names), "class", "classes")
    warn_once(f"{config.dataset}: the values of column {column!r} are {count}{list_names(names)}")
    return names, labels, pa.types.is_integer(classes.type)


def _find_column(
    opened: LoadedSplits, dataset: str, word: str, asked: str | None, kinds: Sequence[Kind], but: str | None = None
) -> str:
    """The column that is asked for, or the only one of the first kind that there is; of several, the one so called."""
    features = {name: feature for name, feature in opened.rows[0].features.items() if name != but}
    found: Collection[str] = ()
    for kind in kinds:
        found = found or [name for name, feature in features.items() if kind(feature) and not name.startswith("__")]
    if asked and asked in features and any(kind(features[asked]) for kind in kinds):
        return asked
    if asked is None and (len(found) == 1 or word in found):
        return word if word in found else next(iter(found))
    wanted = f"a column {asked!r} of {word}s" if asked else f"one column of {word}s"
    hint = f"set {word}_column to one of {', '.join(found)}" if found else f"use a data set with a column of {word}s"
    listing = ", ".join(f"{name} ({_type_name(feature)})" for name, feature in opened.rows[0].features.items())
    raise UsageError(dataset, f"expected {wanted}, got {listing}", hint=hint)


def _read_values(rows: Any, column: str, where: str) -> pa.ChunkedArray:
    """The values of a column of labels, numbers as int64 or float64; one that is not there is refused."""
    values = rows.select_columns([column]).with_format("arrow")[:][column]
    if len(values) == 0:
        raise UsageError(where, "has no images", hint="choose another split")
    feature, missing = rows.features[column], pc.is_null(values, nan_is_null=True)
    if _is_text(feature):
        values = pc.utf8_normalize(values, form="NFC")
        missing = pc.or_(missing, pc.equal(values, "").fill_null(True))
    else:
        values = values.cast(pa.float64() if pa.types.is_floating(values.type) else pa.int64())
        no_label = pc.less(values, 0) if _is_classes(feature) else pc.equal(values, -1)
        missing = pc.or_(missing, no_label.fill_null(True))
    if unlabeled := pc.sum(missing).as_py():
        raise UsageError(where, f"{pluralize(unlabeled, 'image')} without a label", hint="choose another split")
    return values


def _integers(values: pa.ChunkedArray) -> Integers:
    labels: Integers = values.to_numpy().astype(np.int64)
    return labels


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image"


def _is_image_dict(feature: Any) -> bool:
    """Whether images are stored as `datasets` stores them, by somebody who does not say so: pandas, for one."""
    return isinstance(feature, dict) and _is_binary(feature.get("bytes"))


def _is_binary(feature: Any) -> bool:
    return _type_name(feature) in {"binary", "large_binary"}


def _is_classes(feature: Any) -> bool:
    return type(feature).__name__ == "ClassLabel"


def _is_text(feature: Any) -> bool:
    return _type_name(feature) in {"string", "large_string"}


def _is_value(feature: Any) -> bool:
    return _is_text(feature) or _type_name(feature).startswith(("int", "uint", "float", "bool"))


def _type_name(feature: Any) -> str:
    return str(getattr(feature, "dtype", "")) if type(feature).__name__ == "Value" else type(feature).__name__
