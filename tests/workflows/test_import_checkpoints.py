"""Checkpoints of other programs become folders that plain timm loads."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from starzoo.cli.main import main
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.models.sources import load_source
from starzoo.models.unpickle import main as unpickle
from starzoo.workflows.import_checkpoints import ImportOptions, import_checkpoints
from tests.hub.test_faults_hub import Evil
from tests.timm_oracle import assert_as_timm

SMALL = {"layers": [1, 1, 0, 0], "channels": [8, 8, 8, 8]}


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open checkpoints here: starting a process for each takes seconds."""

    def convert(pickle: Path, weights: Path, subject: str, *, ema: bool = True) -> None:
        if problem := unpickle(pickle, weights, ema=ema):
            raise UntrustedInputError("", f"{subject}: {pickle.name} cannot be converted: {problem}")

    monkeypatch.setattr("starzoo.workflows.import_checkpoints.convert", convert)


def network(seed: int = 0, name: str = "resnet18", **arguments: Any) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=3, **(arguments or SMALL)).eval()


def logits(model: nn.Module, size: int = 32) -> Tensor:
    with torch.inference_mode():
        return model(torch.linspace(-1, 1, 2 * 3 * size * size).reshape(2, 3, size, size))


def save(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def test_a_checkpoint_of_timms_training(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own, ema = network(0), network(1)
    arguments = Namespace(
        model="resnet18",
        num_classes=3,
        model_kwargs=SMALL,
        img_size=32,
        mean=[0.5],
        std=[0.25],
        gp="max",
        lr=0.1,
        drop=0.2,
    )
    content = {
        "arch": "resnet18",
        "args": arguments,
        "state_dict": own.state_dict(),
        "state_dict_ema": ema.state_dict(),
    }
    file = save(tmp_path / "run-1" / "model_best.pth.tar", {**content, "epoch": 3, "metric": 77.0, "version": 2})
    assert main(["import", str(file), "--out", str(tmp_path / "zoo"), "--json"]) == 0
    report = json.loads(capfd.readouterr().out)["models"][0]
    assert report["ema"]
    folder = tmp_path / "zoo" / "run-1"
    assert_as_timm(folder)
    source = load_source(folder)
    assert torch.equal(source.state["conv1.weight"], ema.state_dict()["conv1.weight"])
    assert source.architecture.preprocessing.input_size == (3, 32, 32)
    assert (source.architecture.preprocessing.mean, source.architecture.preprocessing.std) == ((0.5,) * 3, (0.25,) * 3)
    assert source.architecture.model_args["global_pool"] == "max"


@pytest.mark.usefixtures("in_process")
def test_without_the_average_and_many_at_once(tmp_path: Path) -> None:
    files = []
    for seed in range(3):
        content = {"arch": "resnet18", "state_dict": network(seed).state_dict(), "model_ema": network(9).state_dict()}
        files.append(save(tmp_path / f"run-{seed}" / "last.pth.tar", content))
    options = ImportOptions(model_args=SMALL, ema=False, label_names=["a", "b", "c"])
    models = import_checkpoints(files, tmp_path / "zoo", options)
    assert [model.folder.name for model in models] == ["run-0", "run-1", "run-2"]
    for seed, model in enumerate(models):
        assert torch.equal(logits(load_source(model.folder).model()), logits(network(seed)))
        assert not model.ema
        assert model.architecture.num_classes == 3  # as many as the classifier has rows
        assert model.architecture.label_names == ("a", "b", "c")
    assert import_checkpoints(files[:1], tmp_path / "zoo", options)[0].folder == models[0].folder
    save(files[0], {"arch": "resnet18", "state_dict": network(7).state_dict()})
    with pytest.raises(UsageError, match=r"run-0: exists, and was not imported from this checkpoint"):
        import_checkpoints(files, tmp_path / "zoo", options)


@pytest.mark.usefixtures("in_process")
def test_the_arguments_beside_a_checkpoint(tmp_path: Path) -> None:
    file = save(tmp_path / "vit" / "best.pth", network(name="vit_tiny_patch16_224", depth=1, img_size=32).state_dict())
    (file.parent / "args.yaml").write_text(
        "model: vit_tiny_patch16_224\nnum_classes: 3\nimg_size: 32\nmodel_kwargs: {depth: 1}\nmean: [0.1, 0.2, 0.3]\n"
        "crop_pct: 0.95\ninterpolation: bilinear\nlr: 0.1\nbn_eps: null\n"
    )
    [model] = import_checkpoints([file], tmp_path / "zoo")
    assert_as_timm(model.folder)
    preprocessing = model.architecture.preprocessing
    assert (preprocessing.input_size, preprocessing.mean) == ((3, 32, 32), (0.1, 0.2, 0.3))
    assert (preprocessing.crop_pct, preprocessing.interpolation) == (0.95, "bilinear")


TORCHVISION = {
    "resnet18": "resnet18",
    "vgg11_bn": "vgg11_bn",
    "densenet121": "densenet121",
    "regnet_y_400mf": "regnety_004",
}


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("theirs", "name"), TORCHVISION.items(), ids=TORCHVISION)
def test_a_checkpoint_of_torchvision(tmp_path: Path, theirs: str, name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(theirs, num_classes=5).eval()
    file = save(tmp_path / f"{theirs}-5c106cde.pth", model.state_dict())
    [imported] = import_checkpoints([file], tmp_path / "zoo", ImportOptions(arch=name))
    assert imported.architecture.num_classes == 5
    torch.testing.assert_close(logits(load_source(imported.folder).model(), 224), logits(model, 224))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("prefix", ["model.", "net.", "module.", "model._orig_mod.", "backbone.model."])
def test_a_checkpoint_of_lightning(tmp_path: Path, prefix: str) -> None:
    model = network()
    content = {
        "state_dict": {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()},
        "hyper_parameters": {"lr": 0.1, "name": "x"},
        "pytorch-lightning_version": "2.5.0",
        "epoch": 3,
    }
    file = save(tmp_path / "epoch=3-step=12.5.ckpt", content)
    [imported] = import_checkpoints([file], tmp_path / "zoo", ImportOptions(arch="resnet18", model_args=SMALL))
    assert imported.folder.name == "epoch=3-step=12.5"
    assert torch.equal(logits(load_source(imported.folder).model()), logits(model))


@pytest.mark.usefixtures("in_process")
def test_what_stands_beside_a_network_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = {f"module.{name}": tensor for name, tensor in network().state_dict().items()}
    file = save(tmp_path / "swa.pth", {**state, "n_averaged": torch.tensor(5), "criterion.weight": torch.ones(3)})
    [imported] = import_checkpoints([file], tmp_path / "zoo", ImportOptions(arch="resnet18", model_args=SMALL))
    assert torch.equal(logits(load_source(imported.folder).model()), logits(network()))
    assert "every name begins with 'module.', which is taken off; 2 other tensors left out" in caplog.text


def test_a_safetensors_file_needs_no_process(tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "net.safetensors")
    [imported] = import_checkpoints(
        [tmp_path / "net.safetensors"], tmp_path / "zoo", ImportOptions(arch="resnet18", model_args=SMALL)
    )
    assert torch.equal(logits(load_source(imported.folder).model()), logits(network()))


@pytest.mark.usefixtures("in_process")
def test_what_must_be_said_is_asked_for(tmp_path: Path) -> None:
    file = save(tmp_path / "net.pth", network().state_dict())
    with pytest.raises(UsageError, match=r"net.pth: does not say which architecture it is \(name it: --arch"):
        import_checkpoints([file], tmp_path / "zoo")
    with pytest.raises(UsageError, match=r"resnet_none: timm does not know"):
        import_checkpoints([file], tmp_path / "zoo", ImportOptions(arch="resnet_none"))
    with pytest.raises(UntrustedInputError, match=r"net.pth: model.safetensors: missing tensors"):
        import_checkpoints([file], tmp_path / "zoo", ImportOptions(arch="resnet18"))
    with pytest.raises(UsageError, match=r"net.pth: has 3 classes, and 2 names are given"):
        import_checkpoints(
            [file], tmp_path / "zoo", ImportOptions(arch="resnet18", model_args=SMALL, label_names=["a", "b"])
        )
    with pytest.raises(UsageError, match=r"nothing.pth: is not a file"):
        import_checkpoints([tmp_path / "nothing.pth"], tmp_path / "zoo", ImportOptions(arch="resnet18"))
    assert not (tmp_path / "zoo").exists()


@pytest.mark.usefixtures("in_process")
def test_two_checkpoints_of_one_name(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{run}" / "net.pth", network(seed).state_dict()) for seed, run in enumerate("ab")]
    models = import_checkpoints(files, tmp_path / "zoo", ImportOptions(arch="resnet18", model_args=SMALL))
    assert [model.folder.name for model in models] == ["a", "b"]
    with pytest.raises(UsageError, match=r"a: two checkpoints would become this folder"):
        import_checkpoints([files[0], files[0]], tmp_path / "zoo", ImportOptions(arch="resnet18", model_args=SMALL))


def test_w01_a_checkpoint_that_would_run_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    canary = tmp_path / "canary"
    content = {"arch": "resnet18", "state_dict": network().state_dict(), "x\x1b[31m": Evil(canary)}
    file = save(tmp_path / "evil.pth", content)
    assert main(["import", str(file), "--out", str(tmp_path / "zoo")]) == 3
    error = capfd.readouterr().err
    assert "evil.pth cannot be converted: it holds " in " ".join(error.split())
    assert "which could run code" in " ".join(error.split())
    assert "\x1b" not in error
    assert "weights_only" not in error
    assert not canary.exists()
    assert not (tmp_path / "zoo").exists()
