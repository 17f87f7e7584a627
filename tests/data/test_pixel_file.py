"""Decoded images that processes and runs share: decoded once, trusted only where they are whole."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from starzoo.config import DataConfig
from starzoo.data import decoding
from starzoo.data.preprocessing import Preprocessing
from starzoo.data.split import Split
from starzoo.data.task import load_data
from starzoo.files import make_room
from starzoo.workflows.doctor import run_checks

GRAY = Preprocessing(input_size=(1, 12, 12), mean=(0.3,), std=(0.4,))
IMAGES = 60


def open_split(**changes: Any) -> Split:
    return load_data(DataConfig(test_size=IMAGES), GRAY.model_copy(update=changes)).test


def pixels_of(split: Split) -> Tensor:
    return split.pixels[torch.arange(len(split))]


@pytest.fixture
def expected() -> Tensor:
    return pixels_of(open_split())


@pytest.fixture
def folder(expected: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the files, which every split has, however small; nothing is decoded before."""
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path))
    monkeypatch.setattr(decoding, "_MEMORY_BYTES", 0)
    return tmp_path / "starzoo" / "pixels"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each image was decoded."""
    counts, decode = Counter[str](), decoding.decode

    def counted(file: Any) -> Any:
        counts[file.description] += 1
        return decode(file)

    monkeypatch.setattr(decoding, "decode", counted)
    return counts


def test_images_are_decoded_once_and_by_no_later_run(folder: Path, expected: Tensor, decoded: Counter[str]) -> None:
    split = open_split()
    some = torch.tensor([7, 3, 7])
    assert torch.equal(split.pixels[some], expected[some])
    assert decoded.total() == 2
    assert torch.equal(pixels_of(split), expected)
    assert torch.equal(pixels_of(split), expected)
    assert torch.equal(pixels_of(open_split()), expected)
    assert (len(decoded), decoded.total()) == (IMAGES, IMAGES)
    assert len(list(folder.iterdir())) == 1
    assert torch.equal(pixels_of(open_split(mean=(0.5,))), expected)  # normalized later
    assert decoded.total() == IMAGES
    assert not torch.equal(pixels_of(open_split(interpolation="nearest")), expected)
    assert decoded.total() == 2 * IMAGES


def flip_a_pixel(content: bytearray) -> None:
    content[-1] ^= 1


def lose_the_pixels(content: bytearray) -> None:
    """As a power cut may: the checksums were written, and the pixels were not."""
    content[8 * IMAGES :] = bytes(len(content) - 8 * IMAGES)


def cut(content: bytearray) -> None:
    del content[len(content) // 2 :]


def empty(content: bytearray) -> None:
    content.clear()


@pytest.mark.parametrize(
    ("damage", "lost"), [(flip_a_pixel, 1), (lose_the_pixels, IMAGES), (cut, IMAGES // 3), (empty, IMAGES)]
)
def test_what_is_damaged_is_decoded_again(
    damage: Callable[[bytearray], None], lost: int, folder: Path, expected: Tensor, decoded: Counter[str]
) -> None:
    pixels_of(open_split())
    [file] = folder.iterdir()
    content = bytearray(file.read_bytes())
    damage(content)
    file.write_bytes(content)
    decoded.clear()
    assert torch.equal(pixels_of(open_split()), expected)
    assert lost <= decoded.total() <= IMAGES
    decoded.clear()
    assert torch.equal(pixels_of(open_split()), expected)
    assert decoded.total() == 0  # it was repaired


def test_a_changed_image_is_decoded_again(folder: Path, decoded: Counter[str]) -> None:
    split, other = open_split(), open_split()
    pixels_of(split)
    files = other.pixels.records.files

    def changed(indices: list[int]) -> Any:
        for number, file in zip(indices, files(indices), strict=True):
            yield file if number != 2 else next(iter(files([6])))

    object.__setattr__(other.pixels.records, "files", changed)
    decoded.clear()
    assert torch.equal(pixels_of(other)[2], pixels_of(split)[6])
    assert decoded.total() == 1


def test_a_read_only_cache_costs_time_only(
    folder: Path, expected: Tensor, decoded: Counter[str], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    folder.parent.mkdir(parents=True)
    folder.touch()  # as root, one may write everywhere but there
    split = open_split()
    assert torch.equal(pixels_of(split), expected)
    assert torch.equal(pixels_of(split), expected)
    assert decoded.total() == IMAGES  # in memory, since it is small enough
    monkeypatch.setattr(decoding, "_MOST_MEMORY_BYTES", 0)
    split = open_split()
    for _ in range(2):
        assert torch.equal(pixels_of(split), expected)
    assert decoded.total() == 3 * IMAGES
    assert sum("decoded images are not kept" in record.message for record in caplog.records) <= 1


def test_a_full_disk_costs_time_only(
    folder: Path, expected: Tensor, decoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    split = open_split()
    split.pixels.prepare(torch.arange(10))
    monkeypatch.setattr("starzoo.data.pixel_file.make_room", lambda *_, **__: False)
    assert torch.equal(pixels_of(split), expected)
    assert not split.pixels.is_kept
    decoded.clear()
    assert torch.equal(split.pixels[torch.arange(10)], expected[:10])  # they are in the file
    assert decoded.total() == 0
    assert torch.equal(split.pixels[torch.arange(8, 12)], expected[8:12])
    assert decoded.total() == 4


def test_the_least_recently_used_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / name).write_bytes(bytes(8192))
        os.utime(tmp_path / name, (1e9 - age, 2e9 + age))
    free = 40_000
    monkeypatch.setattr("starzoo.files.shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    assert make_room(tmp_path, 7000)
    assert len(list(tmp_path.iterdir())) == 3  # 24,576 of at most (24,576 + 40,000) / 2
    assert make_room(tmp_path, 9000, keep=tmp_path / "old")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
    assert not make_room(tmp_path, 10**6, keep=tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_the_doctor_removes_decoded_images_and_keeps_results(folder: Path) -> None:
    pixels_of(open_split())
    result = folder.parent / "evaluations" / "result.safetensors"
    result.parent.mkdir()
    result.touch()
    run_checks()
    assert len(list(folder.iterdir())) == 1
    [check] = [check for check in run_checks(clean=True) if check.name == "decoded images"]
    assert "removed" in check.result
    assert list(folder.iterdir()) == []
    assert result.exists()
