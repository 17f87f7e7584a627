"""Checkpoints: whole or absent, the newest whole one wins, and strangers are refused."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.optim import list_optimizers

from starzoo.config import TrainConfig
from starzoo.errors import CheckpointError, ResourceError, UsageError
from starzoo.models.timm_folder import save_tensors
from starzoo.models.training.optimizer import make_optimizer
from starzoo.star.run.checkpoint import Checkpoint, load_newest, optimizer_tensors, restore_optimizer, save_checkpoint

IDENTITY = {"config": {"star": {"lr": 0.1}}, "sources": {"a": "hash"}}


def make_checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        star={"weight": torch.full((3, 2), float(step))},
        average={"weight": torch.full((3, 2), step / 2)},
        optimizer={"0.momentum_buffer": torch.ones(3, 2)},
        permutations=[{"g:0": torch.tensor(order, dtype=torch.int32)} for order in ([1, 0], [0, 1])],
        history=[{"path_loss": 0.5}] * step,
        scaler={"scale": 2.0**16, "_growth_tracker": 7},
        epoch_sums=[[1.0, 0.5, 0.0, 0.0, 0.0, 0.0]],
        loss_monitor={"recent": [0.1, 0.7], "spikes": 1, "skipped": 0},
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = make_checkpoint(3)
    save_checkpoint(tmp_path, saved, IDENTITY)
    found = load_newest(tmp_path, IDENTITY)
    assert found is not None
    assert (found.step, found.history) == (3, saved.history)
    assert (found.scaler, found.loss_monitor) == (saved.scaler, saved.loss_monitor)
    assert found.epoch_sums == saved.epoch_sums
    assert torch.equal(found.star["weight"], saved.star["weight"])
    assert torch.equal(found.optimizer["0.momentum_buffer"], torch.ones(3, 2))
    assert [p["g:0"].tolist() for p in found.permutations] == [[1, 0], [0, 1]]


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "none", IDENTITY) is None


def test_the_newest_two_are_kept_and_nothing_else(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, make_checkpoint(step), IDENTITY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000003", "step-000000004"]


def test_a_damaged_checkpoint_gives_way_to_a_whole_one_of_its_step(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, make_checkpoint(step), IDENTITY)
    (tmp_path / "step-000000002" / "star.safetensors").write_bytes(b"")
    save_checkpoint(tmp_path, make_checkpoint(2), IDENTITY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001", "step-000000002"]
    found = load_newest(tmp_path, IDENTITY)
    assert found is not None
    assert found.step == 2


FILES = [*(f"{part}.safetensors" for part in ("star", "optimizer", "permutations")), "state.json", "manifest.json"]


@pytest.mark.parametrize("file", FILES)
def test_k07_flipped_bit_falls_back_to_the_one_before(
    tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, make_checkpoint(step), IDENTITY)
    damaged = tmp_path / "step-000000002" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    found = load_newest(tmp_path, IDENTITY)
    assert found is not None
    assert found.step == 1
    assert "step-000000002: damaged, the one before it is used" in caplog.text


@pytest.mark.parametrize("file", FILES)
def test_k08_truncated_or_missing_file_falls_back(tmp_path: Path, file: str) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, make_checkpoint(step), IDENTITY)
    path = tmp_path / "step-000000003" / file
    path.write_bytes(path.read_bytes()[:-7])
    found = load_newest(tmp_path, IDENTITY)
    assert found is not None
    assert found.step == 2


def test_all_damaged_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_checkpoint(1), IDENTITY)
    (tmp_path / "step-000000001" / "star.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"{tmp_path}: no valid checkpoint"):
        load_newest(tmp_path, IDENTITY)


def test_k12_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_checkpoint(1), IDENTITY)
    with pytest.raises(UsageError, match=r"config\.star\.lr was 0\.1, now 0\.2"):
        load_newest(tmp_path, {**IDENTITY, "config": {"star": {"lr": 0.2}}})


def test_an_interrupted_write_is_invisible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, make_checkpoint(1), IDENTITY)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, make_checkpoint(2), IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_a_full_disk_names_the_checkpoint_and_keeps_the_one_before(tmp_path: Path, small_files: None) -> None:
    save_checkpoint(tmp_path, make_checkpoint(1), IDENTITY)
    big = replace(make_checkpoint(2), star={"weight": torch.zeros(2**20)})
    with pytest.raises(ResourceError, match=r"step-000000002: cannot be written: .*File too large.*older .* are kept"):
        save_checkpoint(tmp_path, big, IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_a_folder_inside_a_file_is_the_user_s_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file/checkpoints/step-000000001: cannot be written: Not a directory"):
        save_checkpoint(tmp_path / "file" / "checkpoints", make_checkpoint(1), IDENTITY)


def take_steps(network: torch.nn.Module, optimizer: torch.optim.Optimizer, first: int) -> None:
    for step in range(first, first + 3):
        images = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()


def test_every_optimizer_resumes_bit_for_bit(tmp_path: Path) -> None:
    resumed = []
    for name in list_optimizers(exclude_filters=["adahessian", "kron*", "bnb*", "fused*"]):
        config = TrainConfig(optimizer=name, lr=0.01)
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        optimizer = make_optimizer(network, config)
        take_steps(network, optimizer, 0)
        save_tensors(tmp_path / name, optimizer_tensors(optimizer))
        copy = deepcopy(network)
        other = make_optimizer(copy, config)
        restore_optimizer(other, load_file(tmp_path / name))
        take_steps(network, optimizer, 3)
        take_steps(copy, other, 3)
        assert all(map(torch.equal, network.parameters(), copy.parameters())), name
        resumed.append(name)
    assert {"sgd", "adamw", "lamb", "muon", "adan", "nadamlegacy", "laprop"} < set(resumed)
    assert len(resumed) > 70
