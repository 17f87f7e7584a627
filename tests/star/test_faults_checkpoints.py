"""Runs that are killed, resumed, or find their checkpoints damaged (K01–K16 of the list of faults)."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import pickle
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from starzoo.star.run.checkpoint import Checkpoint, load_newest, save_checkpoint
from tests.processes import SERVER, start_process
from tests.star.runs import Ended, Fault, digest, fit_star, kept, kill, status

STEPS = 22  # of two epochs
EVERY_STEP = ("--set", "runtime.checkpoint_minutes=0.00001")
EVERY_EPOCH = ("--set", "runtime.checkpoint_epochs=1")

Fit = Callable[..., Ended]


@pytest.fixture(scope="module")
def fit(members: list[Path]) -> Fit:
    """Runs a small `fit-star`, in several processes if asked; returns how the first one ended."""

    def run(out: Path, *options: str, ranks: int = 1, fault: Fault | None = None) -> Ended:
        return fit_star(members, out, *options, ranks=ranks, fault=fault).wait()[0]

    return run


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").iterdir())


def changes(folder: Path) -> list[str]:
    return list(json.loads((folder / "star.json").read_text())["changes"])


def assert_refused(ended: Ended, code: int, *words: str) -> None:
    """One line that says what and what to do."""
    assert ended.code == code, ended.text
    lines = [line for line in ended.text.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, ended.text
    assert lines[0].startswith("error: ")
    assert "(hint: " in lines[0]
    for word in words:
        assert word in lines[0]


def make_checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        star={"weight": torch.full((64, 64), float(step))},
        average={},
        optimizer={"0.momentum_buffer": torch.ones(64, 64)},
        permutations=[{"g:0": torch.tensor([1, 0], dtype=torch.int32)}],
        history=[],
        epoch_sums=[],
        loss_monitor={},
    )


def save_without_end(folder: Path, first: int, told: Connection) -> None:
    """Save checkpoints and nothing else."""
    torch.set_num_threads(1)
    for step in itertools.count(first):
        save_checkpoint(folder, make_checkpoint(step), {})
        told.send(step)


def test_k01_of_50_kills_at_random_times_none_leaves_a_folder_without_a_whole_checkpoint(tmp_path: Path) -> None:
    moment, found, interrupted = random.Random(0), 0, 0
    for _ in range(50):
        ours, theirs = SERVER.Pipe(duplex=False)
        process = start_process(save_without_end, tmp_path, found + 1, theirs)
        theirs.close()
        told = [ours.recv()]
        time.sleep(moment.uniform(0, 0.05))
        process.kill()
        process.join()
        with contextlib.suppress(EOFError):
            while True:
                told.append(ours.recv())
        interrupted += any(path.name.startswith(".draft-") for path in tmp_path.iterdir())
        checkpoint = load_newest(tmp_path, {})
        assert checkpoint is not None
        assert checkpoint.step >= told[-1]
        assert torch.equal(checkpoint.star["weight"], torch.full((64, 64), float(checkpoint.step)))
        found = checkpoint.step
    assert interrupted > 5  # or else the kills have not met what they were meant to meet


@pytest.mark.parametrize("damaged", [0, 2])
def test_k11_every_removal_leaves_a_whole_checkpoint(
    damaged: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed, rmtree = list[str | Path](), shutil.rmtree

    def remove(path: str | Path, **options: Any) -> None:
        rmtree(path, **options)
        if Path(path).parent == tmp_path and Path(path).name.startswith("step-"):
            removed.append(path)
            assert load_newest(tmp_path, {}) is not None

    for step in (10, 20, 30):  # three, as a kill between a publication and the removal of the oldest leaves them
        with monkeypatch.context() as patch:
            patch.setattr("starzoo.star.run.checkpoint._KEEP", 3)
            save_checkpoint(tmp_path, make_checkpoint(step), {})
    for path in sorted(tmp_path.iterdir())[3 - damaged :]:
        (path / "state.json").unlink()
    resumed = load_newest(tmp_path, {})
    assert resumed is not None
    monkeypatch.setattr(shutil, "rmtree", remove)
    for step in range(resumed.step + 1, resumed.step + 4):
        save_checkpoint(tmp_path, make_checkpoint(step), {})
        found = load_newest(tmp_path, {})
        assert found is not None
        assert found.step == step
    assert len(removed) >= 3


def test_k02_a_run_that_was_killed_between_epochs_ends_with_the_same_weights(
    fit: Fit, whole: Path, tmp_path: Path
) -> None:
    assert fit(tmp_path / "star", *EVERY_EPOCH, fault=functools.partial(kill, 0, 12)).code == -signal.SIGKILL
    assert kept(tmp_path / "star") == [11]
    assert fit(tmp_path / "star", *EVERY_EPOCH).code == 0
    assert_same(tmp_path / "star", whole)


def test_k03_a_run_that_was_killed_within_an_epoch_ends_with_the_same_weights(
    fit: Fit, whole: Path, killed: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(killed, tmp_path / "star")
    assert 11 < max(kept(out)) < STEPS
    assert fit(out).code == 0
    assert_same(out, whole)
    assert f"resumed at step {max(kept(killed))} of {STEPS}" in (out / "training.log").read_text()


def test_k04_the_same_with_another_number_of_workers(fit: Fit, tmp_path: Path) -> None:
    timm, whole, star = (
        ("--augment", "timm", "--set", "data.transform.re_prob=0.5"),
        tmp_path / "whole",
        tmp_path / "star",
    )
    assert fit(whole, *timm, "--set", "runtime.workers=0").code == 0
    fault, two = functools.partial(kill, 0, 18), ("--set", "runtime.workers=2")
    assert fit(star, *timm, *EVERY_STEP, *two, fault=fault).code == -signal.SIGKILL
    assert 11 < max(kept(star)) < STEPS
    assert fit(star, *timm, "--set", "runtime.workers=1").code == 0
    assert_same(star, whole)


def test_k05_the_same_with_two_ranks(
    fit: Fit, whole: Path, whole_of_two: Path, killed_of_two: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(killed_of_two, tmp_path / "star")
    assert 11 < max(kept(out)) < STEPS
    assert status(out)["message"].startswith("process 0 of 2: was lost")
    assert fit(out, ranks=2).code == 0
    assert_same(out, whole_of_two)
    assert digest(out / "model.safetensors") != digest(whole / "model.safetensors")  # two ranks draw twice as often


def test_k06_another_number_of_ranks_is_refused_or_noted(fit: Fit, killed_of_two: Path, tmp_path: Path) -> None:
    out = shutil.copytree(killed_of_two, tmp_path / "star")
    step = max(kept(out))
    for path in (out / "checkpoints").iterdir():
        forge(path, epoch_sums=[[*sums[:-1], 3.0] for sums in read_state(path)["epoch_sums"]])
    before = contents(out)
    assert_refused(fit(out), 2, str(out), "2 processes before, 1 now", "--allow-world-size-change")
    assert contents(out) == before
    assert fit(out, "--allow-world-size-change").code == 0
    assert changes(out) == [f"from step {step}: 2 processes before, 1 now"]
    history = json.loads((out / "star.json").read_text())["history"]
    assert history[-1]["moved"] == 3.0


def test_k09_without_its_state_a_checkpoint_is_passed_over(fit: Fit, whole: Path, killed: Path, tmp_path: Path) -> None:
    out = shutil.copytree(killed, tmp_path / "star")
    (newest(out) / "state.json").unlink()
    ended = fit(out)
    assert ended.code == 0, ended.text
    assert "resumed at step" in (out / "training.log").read_text()
    assert_same(out, whole)


def test_k09_when_all_are_damaged_the_run_ends_with_7(fit: Fit, killed: Path, tmp_path: Path) -> None:
    out = shutil.copytree(killed, tmp_path / "star")
    for path in (out / "checkpoints").iterdir():
        (path / "state.json").write_bytes((path / "state.json").read_bytes()[:-9])
    before = contents(out)
    assert_refused(fit(out), 7, f"{out / 'checkpoints'}: no valid checkpoint among 2", "remove the folder")
    assert contents(out) == before


def fill_the_disk(rank: int) -> None:
    """After the first checkpoint no file may grow beyond a few bytes."""
    import starzoo.star.fit

    save = starzoo.star.fit.save_checkpoint

    def save_and_fill(*arguments: object) -> Path:
        saved = save(*arguments)  # type: ignore[arg-type]
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        return saved

    starzoo.star.fit.save_checkpoint = save_and_fill  # type: ignore[assignment]


def test_k10_a_full_disk_ends_the_run_with_8_and_keeps_the_checkpoint_before(fit: Fit, tmp_path: Path) -> None:
    out = tmp_path / "star"
    ended = fit(out, *EVERY_STEP, fault=fill_the_disk)
    assert_refused(ended, 8, f"{out / 'checkpoints' / 'step-0000'}", "cannot be written", " MB are free there")
    [checkpoint] = (out / "checkpoints").iterdir()
    hashes = json.loads((checkpoint / "manifest.json").read_text())
    assert len(hashes) == 5
    assert all(digest(checkpoint / name) == hashes[name] for name in hashes)
    assert [path.name for path in out.rglob(".*")] == [".lock"]


def test_k12_another_configuration_is_refused_or_noted(fit: Fit, killed: Path, tmp_path: Path) -> None:
    out = shutil.copytree(killed, tmp_path / "star")
    before, other = contents(out), ["--lr", "0.1", "--mu", "0.7"]
    differences = ["config.star.lr was 0.2, now 0.1", "config.star.mu was 0.2, now 0.7"]
    assert_refused(fit(out, *other), 2, str(out), *differences, "--override")
    assert contents(out) == before
    assert fit(out, *other, "--override").code == 0
    assert changes(out) == [f"from step {max(kept(killed))}: {difference}" for difference in differences]
    assert json.loads((out / "star.json").read_text())["config"]["star"]["lr"] == 0.1


def test_k13_other_images_are_refused(fit: Fit, killed: Path, tmp_path: Path) -> None:
    out = shutil.copytree(killed, tmp_path / "star")
    for path in (out / "checkpoints").iterdir():
        forge(path, identity={**read_state(path)["identity"], "data": "other images"})
    before = contents(out)
    for options in ([], ["--override"]):
        assert_refused(fit(out, *options), 2, str(out), 'data was "other images", now', "use another --out")
    assert contents(out) == before


@pytest.mark.parametrize("file", [None, "more.safetensors"])
def test_k15_a_checkpoint_of_a_newer_starzoo_is_refused(
    file: str | None, fit: Fit, killed: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(killed, tmp_path / "star")
    if file:
        (newest(out) / file).touch()
    forge(newest(out), schema=99)
    before = contents(out)
    assert_refused(fit(out), 2, newest(out).name, "written by a newer starzoo (schema 99)", "update starzoo")
    assert contents(out) == before


class Opened:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def test_k16_a_pickle_among_the_files_is_refused_and_not_opened(fit: Fit, killed: Path, tmp_path: Path) -> None:
    out, mark = shutil.copytree(killed, tmp_path / "star"), tmp_path / "opened"
    pickled = pickle.dumps(Opened(mark))
    pickle.loads(pickled)
    assert mark.exists()
    mark.unlink()
    (newest(out) / "optimizer.bin").write_bytes(pickled)
    before = contents(out)
    assert_refused(fit(out), 3, newest(out).name, "holds optimizer.bin, which starzoo does not write", "stranger")
    assert not mark.exists()
    assert contents(out) == before


def read_state(checkpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    return found


def forge(checkpoint: Path, **values: object) -> None:
    """Change what a checkpoint's state says, and make it whole again."""
    file = checkpoint / "state.json"
    file.write_text(json.dumps({**read_state(checkpoint), **values}))
    names = [path.name for path in checkpoint.iterdir() if path.name != "manifest.json"]
    hashes = {name: digest(checkpoint / name) for name in names}
    (checkpoint / "manifest.json").write_text(json.dumps(hashes))


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a run but its status, which tells how the last try ended."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "status.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_same(folder: Path, whole: Path) -> None:
    """Both stars have the same weights and history, to the last bit."""
    for name in ("model.safetensors", "permutations.safetensors"):
        assert digest(folder / name) == digest(whole / name)
    one, other = (json.loads((each / "star.json").read_text()) for each in (folder, whole))
    assert one["history"] == other["history"]
    assert one["evaluation"] == other["evaluation"]
    assert one["changes"] == []
