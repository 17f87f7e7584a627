"""A known fingerprint is found without a look at the images, and any change of a file makes it unknown."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from starzoo.config import DataConfig
from starzoo.data.fingerprint_cache import get_or_compute_fingerprint
from starzoo.data.records import RawSplit, RawTask, open_data
from starzoo.errors import UsageError


def encode(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "assets"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, (split, name) in enumerate((s, c) for s in ("train", "test") for c in ("cat", "dog")):
        for index in range(4):
            file = tmp_path / "images" / split / name / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(10 * number + index))
    return tmp_path / "images"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One number for each image that is read."""
    seen, plain = list[int](), RawSplit.files

    def files(self: RawSplit, indices: range) -> object:
        seen.extend(indices)
        return plain(self, indices)

    monkeypatch.setattr(RawSplit, "files", files)
    return seen


def open_folder(folder: Path, **options: object) -> RawTask:
    return open_data(DataConfig(dataset=str(folder), **options))


def test_images_are_read_once_for_all_runs(folder: Path, reads: list[int]) -> None:
    first = open_folder(folder).fingerprint
    assert len(reads) == 16
    assert open_folder(folder).fingerprint == first
    assert len(reads) == 16


def replace(folder: Path) -> None:
    file = folder / "train" / "cat" / "0.png"
    content = file.read_bytes()
    status = file.stat()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as rsync does: only the time of the change is new


def add(folder: Path) -> None:
    (folder / "test" / "dog" / "9.png").write_bytes(encode(99))


def remove(folder: Path) -> None:
    (folder / "test" / "dog" / "0.png").unlink()


def rename(folder: Path) -> None:
    (folder / "test" / "dog" / "0.png").rename(folder / "test" / "cat" / "8.png")


@pytest.mark.parametrize("change", [replace, add, remove, rename])
def test_a_changed_folder_has_another_fingerprint(
    change: Callable[[Path], None], folder: Path, reads: list[int]
) -> None:
    first = open_folder(folder).fingerprint
    time.sleep(0.02)  # the clock of the file system ticks a few hundred times per second
    change(folder)
    assert open_folder(folder).fingerprint != first
    assert len(reads) > 16


def test_a_subset_and_the_other_way_round_are_other_images(folder: Path) -> None:
    options: list[dict[str, object]] = [{}, {"train_size": 4}, {"train_split": "test", "test_split": "train"}]
    assert len({open_folder(folder, **each).fingerprint for each in options}) == 3


def test_images_that_are_in_both_splits_are_refused_from_the_cache_too(folder: Path, reads: list[int]) -> None:
    (folder / "test" / "cat" / "0.png").write_bytes(encode(0))
    for _ in range(2):
        with pytest.raises(UsageError, match="1 of 8 test images are also training images"):
            _ = open_folder(folder).fingerprint
    assert len(reads) == 16


def test_without_a_writable_cache_images_are_read_again(
    folder: Path, reads: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "file"))
    assert open_folder(folder).fingerprint == open_folder(folder).fingerprint
    assert len(reads) == 32


def test_one_of_those_who_ask_at_the_same_time_computes() -> None:
    computed, found = list[int](), list[tuple[str, int]]()

    def compute() -> tuple[str, int]:
        computed.append(1)
        time.sleep(0.3)
        return "digest", 0

    askers = [
        threading.Thread(target=lambda: found.append(get_or_compute_fingerprint("key", compute))) for _ in range(3)
    ]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert (computed, found) == ([1], [("digest", 0)] * 3)


def test_tables_with_whole_numbers_and_tar_shards_open(tmp_path: Path) -> None:
    tables, shards = tmp_path / "tables", tmp_path / "shards"
    tables.mkdir()
    shards.mkdir()
    for split in ("train", "validation"):
        contents = [encode(len(split) * 10 + index) for index in range(6)]
        rows = {"image": [{"bytes": content, "path": None} for content in contents], "label": [0, 1, 2, 0, 1, 2]}
        pq.write_table(pa.table(rows), tables / f"{split}-00000-of-00001.parquet")
        with tarfile.open(shards / f"imagenet1k-{split}-0000.tar", "w") as archive:
            for index, content in enumerate(contents):
                for name, member in ((f"n{index}.png", content), (f"n{index}.cls", str(index % 3).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(member)
                    archive.addfile(info, io.BytesIO(member))
    for folder in (tables, shards):
        task = open_folder(folder, test_split="validation")
        assert (task.class_names, task.is_numbered) == (("0", "1", "2"), True)
        assert task.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert len(task.fingerprint) == 64
