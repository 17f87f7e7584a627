from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from starzoo.errors import ResourceError, UsageError
from starzoo.evaluate.result_cache import ResultCache
from starzoo.models import timm_folder as folder_module
from starzoo.models.timm_folder import load_state, read_architecture, save_tensors, save_timm_folder, sha256_file
from starzoo.progress import no_progress
from starzoo.report.card import write_card
from starzoo.star.manifest import read_manifest
from starzoo.star.run.checkpoint import Checkpoint, save_checkpoint
from starzoo.star.run.log import TrainingLog
from starzoo.star.run.status import Status
from starzoo.workflows.import_checkpoints import ImportOptions, import_checkpoints
from tests.conftest import MakeMember
from tests.hostile import full_manifest
from tests.stars import make_star

LOAD_WITH_TIMM = """
import json, sys, timm, torch
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
logits = model(torch.linspace(-1, 1, 2 * 256).reshape(2, 1, 16, 16))
assert not [name for name in sys.modules if name.startswith("starzoo")]
print(json.dumps({"logits": logits.tolist(), "config": model.pretrained_cfg}))
"""


def test_plain_timm_loads_a_folder_bit_for_bit(make_member: MakeMember) -> None:
    folder = make_member()
    run = subprocess.run(
        [sys.executable, "-c", LOAD_WITH_TIMM, str(folder)], capture_output=True, text=True, check=True, timeout=120
    )
    seen = json.loads(run.stdout)
    architecture = read_architecture(folder)
    model = architecture.build()
    model.load_state_dict(load_state(folder, architecture))
    expected = model(torch.linspace(-1, 1, 2 * 256).reshape(2, 1, 16, 16))
    assert torch.equal(torch.tensor(seen["logits"]), expected)
    config = seen["config"]
    assert (config["mean"], config["std"], config["input_size"]) == ([0.25], [0.5], [1, 16, 16])
    assert config["label_names"] == ["cat", "dog", "señor"]
    assert not [key for key in ("license", "tag", "paper_ids", "origin_url", "hf_hub_id") if config.get(key)]


def test_views_and_shared_memory_are_saved(tmp_path: Path, make_member: MakeMember) -> None:
    architecture = read_architecture(make_member())
    base = torch.zeros(10_000_000)
    state = {
        name: torch.as_strided(
            base, shape, torch.empty(shape).mT.stride() if len(shape) == 2 else torch.empty(shape).stride()
        )
        if name not in architecture.network.integers
        else torch.tensor(7)
        for name, shape in architecture.shapes.items()
    }
    state = {name: tensor + 1 if "running_var" in name else tensor for name, tensor in state.items()}
    save_timm_folder(tmp_path / "views", architecture, state)
    loaded = load_state(tmp_path / "views", architecture)
    assert list(loaded) == list(architecture.shapes)
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    with safe_open(tmp_path / "views/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_other_files_stay_and_no_draft_is_left(make_member: MakeMember, tmp_path: Path) -> None:
    folder = make_member()
    (folder / "notes.txt").write_text("mine")
    before = sha256_file(folder / "model.safetensors")
    make_member(seed=1)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]
    assert sha256_file(folder / "model.safetensors") != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-0"]


def test_an_interrupted_write_leaves_what_was_there(make_member: MakeMember, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_member()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def write_half(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "save_file", write_half)
    with pytest.raises(ResourceError, match=r"model.safetensors: cannot be written: .*No space left"):
        make_member(seed=1)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_file_that_does_not_fit_is_no_internal_error(tmp_path: Path, small_files: None) -> None:
    with pytest.raises(ResourceError, match=r"new/big\.safetensors: cannot be written: .*File too large") as caught:
        save_tensors(tmp_path / "new/big.safetensors", {"weight": torch.zeros(2**20)})
    assert caught.value.exit_code == 8
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("path", ["file/model.safetensors", "file/deeper/model.safetensors", "folder"])
def test_a_path_that_cannot_be_is_the_user_s_mistake(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=rf"{path}: cannot be written: (File exists|Not a dir|Is a dir)"):
        save_tensors(tmp_path / path, {"weight": torch.zeros(2)})
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002, 0o077])
def test_files_and_folders_have_the_mode_of_the_umask(
    umask: int, make_member: MakeMember, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(functools.partial(os.umask, os.umask(umask)))
    folder = make_member("zoo/seed-0")
    nothing = Checkpoint(
        step=1, star={}, average={}, optimizer={}, permutations=[], history=[], epoch_sums=[], loss_monitor={}
    )
    checkpoint = save_checkpoint(tmp_path / "checkpoints", nothing, {})
    for path in (folder.parent, folder, checkpoint.parent, checkpoint):
        assert path.stat().st_mode & 0o777 == 0o777 & ~umask, path
    files = [*folder.iterdir(), *checkpoint.iterdir()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path


@pytest.mark.parametrize("umask", [0o027])
def test_h09_whatever_is_written_has_the_mode_of_the_umask(
    umask: int,
    make_member: MakeMember,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "written" / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "written" / "home"))
    request.addfinalizer(functools.partial(os.umask, os.umask(umask)))
    root = tmp_path / "written"
    members = [make_member(f"seed-{seed}", seed=seed, parent=root) for seed in range(2)]
    torch.save(load_file(members[0] / "model.safetensors"), tmp_path / "last.pth")
    config = json.loads((members[0] / "config.json").read_text())
    options = ImportOptions(arch=config["architecture"], model_args=config["model_args"], num_classes=3)
    import_checkpoints([tmp_path / "last.pth"], root / "imported", options)
    star = make_star(root / "star", members, evaluation=full_manifest().evaluation)
    write_card(star, read_manifest(star / "star.json"))
    TrainingLog(star / "training.log", [], epochs=1, images=1).write_line("x")
    Status(star, no_progress)("stage", 1, 1)
    ResultCache.default().get_or_compute({"key": 1}, lambda: {"value": torch.zeros(1)})
    nothing = Checkpoint(
        step=1, star={}, average={}, optimizer={}, permutations=[], history=[], epoch_sums=[], loss_monitor={}
    )
    save_checkpoint(star / "checkpoints", nothing, {})
    key = root / "home" / "starzoo" / "key"
    found = [path for path in root.rglob("*") if path != key]
    assert {path.name for path in found} >= {
        *("model.safetensors", "permutations.safetensors", "star.json", "README.md", "paths-test.png", "paths.csv"),
        *("training.log", "status.json", "local-paths.json", "state.json", "specs", "evaluations", "imported"),
    }
    for path in found:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path
    assert key.stat().st_mode & 0o777 == 0o600  # nobody else may write what this machine believes


def test_file_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert sha256_file(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
