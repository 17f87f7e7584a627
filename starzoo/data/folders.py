"""Scan folders of class folders; a class may have the name of a split."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from starzoo.data.formats import image_extensions

__all__ = ["find_split", "scan_folder", "spread_classes"]

Integers = np.ndarray[Any, np.dtype[np.int64]]

_SPLITS = (("train", "training"), ("validation", "val", "valid", "dev"), ("test", "testing", "eval", "evaluation"))
_SPLIT_WORDS = frozenset().union(*_SPLITS)

_METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}  # describe the images of a folder, at any depth
_CONTAINERS = {"parquet", "arrow", "tar"}  # extensions of files that hold images
_LISTS = {"csv", "tsv", "json", "jsonl"}  # extensions of files that list images, if named like a split: train.csv


def find_split(name: str, available: Collection[str]) -> str | None:
    """Find a split by its name or a synonym: `val` for `validation`, and validation where there is no test split."""
    if name in available:
        return name
    _, validation, test = _SPLITS
    synonyms: tuple[str, ...] = next((group for group in _SPLITS if name in group), ())
    synonyms += validation if synonyms == test else ()
    by_lower_name = {split.lower(): split for split in available}
    return next((by_lower_name[synonym] for synonym in synonyms if synonym in by_lower_name), None)


def scan_folder(folder: Path, wanted: Sequence[str]) -> dict[str, list[str]] | None:
    """List the images of a folder `split/class/image` or `class/image` by split; return None for other folders."""
    images, has_list = [], False
    for path in _list_files(folder):
        name = path.rpartition("/")[2].lower()
        stem, _, extension = name.rpartition(".")
        if extension in _CONTAINERS or name in _METADATA:
            return None
        has_list |= extension in _LISTS and re.split("[^a-z]", stem)[0] in _SPLIT_WORDS
        if f".{extension}" in image_extensions():
            images.append(path)
    folders = {path: path.split("/")[:-1] for path in images}
    start = _shared_depth(folders.values())
    splits: dict[str, list[str]] = {}
    for path, parts in folders.items():
        splits.setdefault("/".join(parts[start : start + 1]), []).append(path)
    nested = [split for split, paths in splits.items() if _depth(folders[path] for path in paths) > start + 1]
    if any(find_split(name, nested) for name in wanted):
        return {split: splits[split] for split in nested}
    is_classes = (
        _depth(folders.values()) > start and not {parts[-1].lower() for parts in folders.values()} <= _SPLIT_WORDS
    )
    return {"train": images} if is_classes and not has_list else None


def spread_classes(labels: Integers) -> Integers:
    """Return an order of the rows in which every part has all classes in proportion, if there are enough images."""
    order = np.random.default_rng(0).permutation(len(labels))
    quantile = np.empty(len(labels))  # of a row among those of its class
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        quantile[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    spread: Integers = order[np.argsort(quantile[order], kind="stable")]
    return spread


def _list_files(folder: Path) -> list[str]:
    """Return the sorted paths of all files in a folder without hidden ones, which `datasets` skips too."""
    paths = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        parent = Path(root).relative_to(folder)
        paths += [(parent / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(paths)


def _shared_depth(folders: Iterable[Sequence[str]]) -> int:
    """Count the common parents of all images above the splits: 1 for `data/train/cat` and `data/test/cat`."""
    depth = 0
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1 or parts[0].lower() in _SPLIT_WORDS:
            break
        depth += 1
    return depth


def _depth(folders: Iterable[Sequence[str]]) -> int:
    """Return the common depth of folders; 0 where their depths differ."""
    depths = {len(parts) for parts in folders}
    return depths.pop() if len(depths) == 1 else 0
