"""Results that are kept: none is measured twice, and none that was damaged is believed."""

from __future__ import annotations

import functools
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from starzoo.errors import UsageError
from starzoo.evaluate.evaluate import Shard
from starzoo.evaluate.result_cache import ResultCache
from starzoo.files import bytes_on_disk, list_cache
from starzoo.models.weights import hash_tensors
from starzoo.star.star import load_star
from starzoo.workflows.evaluate import evaluate_star
from tests.evaluate.faults import kill_after
from tests.star.runs import run
from tests.stars import make_star

DATA = {"train_size": 300, "test_size": 60}
MEASURE = {"points": 3, "source_pairs": 1, "bma_samples": 2, "loss_plane_points": 2, "validation_images": 50}


@contextmanager
def forward_passes() -> Iterator[list[str]]:
    """The modules that are called meanwhile, by the names of their classes."""
    called: list[str] = []

    def note(module: nn.Module, _: object, output: object) -> None:
        if not getattr(output, "is_meta", False):  # where only sizes are judged
            called.append(type(module).__name__)

    handle = register_module_forward_hook(note)
    yield called
    handle.remove()


@pytest.fixture(scope="module")
def a_star(untrained: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "star"
    return make_star(folder, untrained[:2])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "starzoo" / "evaluations"


def measure(star: Path, untrained: list[Path], **changes: object) -> object:
    options = {"holdouts": [str(untrained[2])], "data": DATA, "evaluate": MEASURE, **changes}
    return evaluate_star(str(star), **options).manifest.evaluation  # type: ignore[arg-type]


def test_a_second_run_makes_no_forward_pass(a_star: Path, untrained: list[Path], cache: Path) -> None:
    with forward_passes() as first:
        found = measure(a_star, untrained)
    assert "ResNet" in first
    with forward_passes() as second:
        assert measure(a_star, untrained) == found
    assert second == []
    with forward_passes() as third:
        assert measure(a_star, untrained, use_cache=False) == found
    assert third.count("ResNet") > 10
    with forward_passes() as more:  # what two evaluations have in common is measured once
        measure(a_star, untrained, evaluate={**MEASURE, "source_pairs": 2})
    assert 0 < more.count("ResNet") < first.count("ResNet") / 2


def test_damaged_results_are_measured_again(a_star: Path, untrained: list[Path], cache: Path) -> None:
    found = measure(a_star, untrained)
    files = sorted(cache.iterdir())
    before = {file: file.read_bytes() for file in files}
    for number, file in enumerate(files):
        content = bytearray(before[file])
        match number % 4:
            case 0:
                content[-1] ^= 1
            case 1:
                content = content[:-1]
            case 2:
                content = bytearray(before[files[number - 1]])  # another result
            case _:
                content = bytearray()
        file.write_bytes(content)
    assert measure(a_star, untrained) == found
    assert {file: file.read_bytes() for file in files} == before
    with forward_passes() as again:
        measure(a_star, untrained)
    assert again == []


@pytest.mark.parametrize(
    "changes", [{"data": {**DATA, "test_size": 61}}, {"evaluate": {**MEASURE, "batch_norm_images": 100}}]
)
def test_other_images_and_settings_are_other_results(
    a_star: Path, untrained: list[Path], cache: Path, changes: dict[str, object]
) -> None:
    measure(a_star, untrained)
    count = len(list(cache.iterdir()))
    with forward_passes() as called:
        measure(a_star, untrained, **changes)
    assert called
    assert len(list(cache.iterdir())) > 1.5 * count


def test_t12_an_evaluation_that_was_killed_goes_on(
    a_star: Path, untrained: list[Path], cache: Path, tmp_path: Path
) -> None:
    star = tmp_path / "star"
    shutil.copytree(a_star, star)
    options = [
        "--holdout",
        untrained[2],
        "--train-size",
        "300",
        "--test-size",
        "60",
        "--points",
        "3",
        "--source-pairs",
        "1",
    ]
    arguments = ["evaluate", star, *options, "--bma-samples", "2", "--loss-plane-points", "2", "--quiet"]
    before = load_star(star).manifest
    [ended] = run(*arguments, fault=functools.partial(kill_after, 6))
    assert ended.code == -signal.SIGKILL
    assert load_star(star).manifest == before  # nothing half measured is written
    finished = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    assert len(finished) == 6
    [ended] = run(*arguments)
    assert ended.code == 0, ended.text
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    whole = load_star(star).manifest.evaluation
    assert whole == measure(a_star, untrained, use_cache=False)
    everything = len(list(cache.iterdir()))
    assert everything > 12
    with forward_passes() as called:
        assert measure(a_star, untrained) == whole
    assert called == []
    assert len(list(cache.iterdir())) == everything


def test_the_jobs_of_an_array_leave_little_to_measure(a_star: Path, untrained: list[Path], cache: Path) -> None:
    before = load_star(a_star).manifest
    for number in (1, 2, 3):
        evaluate_star(str(a_star), holdouts=[str(untrained[2])], data=DATA, evaluate=MEASURE, shard=Shard(number, 3))
    assert load_star(a_star).manifest == before
    with forward_passes() as left:
        found = measure(a_star, untrained)
    with forward_passes() as everything:
        assert measure(a_star, untrained, use_cache=False) == found
    assert 0 < left.count("ResNet") < everything.count("ResNet") / 3  # the average over the star domain


def test_a_shard_needs_the_cache() -> None:
    with pytest.raises(UsageError, match="leaves its results in the cache"):
        evaluate_star("star", shard=Shard(1, 2), use_cache=False)
    assert Shard.parse("2/8") == Shard(2, 8)
    for text in ("0/2", "3/2", "1", "1/2/3", "-1/2", "a/b"):
        with pytest.raises(UsageError, match="expected a shard"):
            Shard.parse(text)


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = ResultCache(tmp_path / "file" / "folder")
    for _ in range(2):
        assert cache.get_or_compute({"a": 1}, lambda: {"x": torch.ones(2)})["x"].tolist() == [1, 1]


def test_hashes_tell_tensors_apart() -> None:
    ones = {"a": torch.ones(2, 3), "b": torch.zeros(0)}
    assert hash_tensors(ones) == hash_tensors(dict(reversed(ones.items())))
    others = [
        {"a": torch.ones(3, 2)},
        {"a": torch.ones(2, 3).double()},
        {"c": torch.ones(2, 3)},
        {"a": torch.ones(2, 3).T.T + 1},
    ]
    hashes = {hash_tensors(ones), *(hash_tensors({**other, "b": torch.zeros(0)}) for other in others)}
    assert len(hashes) == 5


def test_without_a_folder_results_stay_in_memory() -> None:
    cache = ResultCache(None)
    measured: list[int] = []
    for _ in range(2):
        cache.get_or_compute({"a": 1}, lambda: measured.append(1) or {"x": torch.ones(2)})  # type: ignore[func-returns-value]
    assert measured == [1]
    assert ResultCache(None).get_or_compute({"a": 1}, lambda: {"x": torch.zeros(2)})["x"].tolist() == [0, 0]


def test_results_that_were_not_used_for_long_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ResultCache(tmp_path)
    for number in range(3):
        cache.get_or_compute({"a": number}, lambda: {"x": torch.ones(1024)})
    for file in tmp_path.iterdir():
        os.utime(file, (0, 0))
    cache.get_or_compute({"a": 1}, dict)  # used
    used = sum(bytes_on_disk(status) for _, status in list_cache(tmp_path))
    monkeypatch.setattr("starzoo.files.shutil.disk_usage", lambda _: type("Usage", (), {"free": used - 8192}))
    cache.get_or_compute({"a": 3}, lambda: {"x": torch.ones(1024)})
    measured: list[int] = []
    for number in (3, 1):
        cache.get_or_compute({"a": number}, lambda: measured.append(1) or {})  # type: ignore[func-returns-value]
    assert measured == []
    assert len(list(tmp_path.iterdir())) < 4
