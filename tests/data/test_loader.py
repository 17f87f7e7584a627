"""Batches by processes: the same bits for any number, errors as they are, and no process that is left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from starzoo.config import DataConfig
from starzoo.data import loader as loader_module
from starzoo.data.loader import Loader
from starzoo.data.preprocessing import Preprocessing
from starzoo.data.split import Split
from starzoo.data.task import load_data
from starzoo.errors import ResourceError, UntrustedInputError, exit_code_of, to_starzoo_error
from tests.data.pictures import write_pictures

COLOR = Preprocessing(input_size=(3, 8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
PROCESSES = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits of two classes with 24 and 4 pictures."""
    write_pictures(tmp_path, ["train/a", "train/b"], 12)
    return write_pictures(tmp_path, ["test/a", "test/b"], 2)


def load(folder: Path, **options: Any) -> Split:
    return load_data(DataConfig(dataset=str(folder), **options), COLOR).train


def epoch(split: Split, augment: Any, workers: int | None, **options: Any) -> Loader:
    return split.loader(4, epoch=1, seed=7, augment=augment, workers=workers, **options)


def start(loader: Loader) -> tuple[Iterator[Any], list[BaseProcess]]:
    """Begin to load; return the batches and the processes that load them."""
    before, batches = multiprocessing.active_children(), iter(loader)
    first = next(batches)
    return chain([first], batches), [each for each in multiprocessing.active_children() if each not in before]


def assert_equal(some: Any, others: Any) -> None:
    for (images, labels), (other_images, other_labels) in zip(some, others, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


@PROCESSES
@pytest.mark.parametrize("augment", ["none", "crop-flip", "timm"])
def test_batches_are_the_same_for_any_number_of_processes(
    augment: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = load(folder, augment=augment)
    expected = list(epoch(in_memory, augment, 0))
    monkeypatch.setattr("starzoo.data.decoding.DecodedImages.is_kept", False)
    fresh = load(folder, augment=augment)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    for workers in (0, 1, 2):
        assert_equal(epoch(fresh, augment, workers), expected)
        assert_equal(epoch(fresh, augment, workers).skip(4), expected[4:])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert list(epoch(fresh, augment, 2).skip(6)) == []


@PROCESSES
def test_processes_load_only_what_is_not_in_memory(folder: Path) -> None:
    split = load(folder)
    for augment, count in (("crop-flip", 0), ("timm", 2)):
        batches, processes = start(epoch(split, augment, 2))
        assert len(processes) == count
        del batches
        assert not any(process.is_alive() for process in processes)


@PROCESSES
def test_processes_are_as_many_as_cores_unless_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    count, ranks = loader_module._count_workers, {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    assert [count(wanted) for wanted in (0, 3, None)] == [0, 3, 7]
    for name, value in {**ranks, "TORCHELASTIC_RUN_ID": "1", "MASTER_ADDR": "here", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert [count(wanted) for wanted in (3, None)] == [3, 3]
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {"daemon": True})
    assert count(3) == 0  # it may have no processes


@PROCESSES
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named(workers: int, folder: Path) -> None:
    (folder / "train" / "b" / "003.png").write_bytes(b"no picture")
    before = set(multiprocessing.active_children())
    with pytest.raises(UntrustedInputError, match=r"image 15 of split 'train' \(003.png\): cannot be read") as caught:
        list(epoch(load(folder), "timm", workers))
    assert set(multiprocessing.active_children()) == before
    assert caught.value.hint == "repair the data set or remove the image"
    assert exit_code_of(caught.value) == 3


@PROCESSES
def test_a_killed_process_is_an_error_about_resources(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loader, "_read", lambda self, rows: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RuntimeError) as caught:
        list(epoch(load(folder), "timm", 1))
    error = to_starzoo_error(caught.value)
    assert isinstance(error, ResourceError)
    assert "a process that loads images has failed" in error.message
    assert "runtime.workers" in error.hint


@PROCESSES
def test_signals_to_all_processes_of_a_run_end_none_that_loads(folder: Path) -> None:
    batches, [process] = start(epoch(load(folder), "timm", 1))
    for number in ("INT", "TERM", "USR1", "USR2"):
        subprocess.run(["kill", f"-{number}", str(process.pid)], check=True)
    time.sleep(0.2)
    assert process.is_alive()
    assert len(list(batches)) == 6
    process.join(5)
    assert not process.is_alive()


@PROCESSES
def test_a_process_ends_when_its_parent_ends_it(folder: Path) -> None:
    _, [process] = start(epoch(load(folder), "timm", 1))
    process.terminate()  # as Python does at its end
    process.join(5)
    assert process.exitcode == 0
