"""Sources of several input sizes come together at one: resampled as timm does, measured there, and published so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from starzoo import load_star
from starzoo.config import DataConfig, EvalConfig, RunConfig, StarConfig
from starzoo.data.preprocessing import Preprocessing
from starzoo.errors import IncompatibleError
from starzoo.models.architecture import Architecture
from starzoo.models.sources import load_sources
from starzoo.models.timm_folder import save_timm_folder
from starzoo.workflows.evaluate import evaluate_star
from starzoo.workflows.fit import fit_star
from starzoo.workflows.plan import plan_star
from starzoo.workflows.predict import join_star
from starzoo.workflows.verify import verify_star
from tests.cli.conftest import run as run

NETWORKS: Mapping[str, dict[str, Any]] = {
    "resnet18": {"layers": [1, 1, 0, 0], "channels": [8, 8, 8, 8], "zero_init_last": False},
    "vit_tiny_patch16_224": {"patch_size": 8, "depth": 1, "embed_dim": 12, "num_heads": 3},
    "mixer_s32_224": {},
}


def make(folder: Path, name: str, size: int, seed: int) -> str:
    arguments = NETWORKS[name] if name == "resnet18" else {**NETWORKS[name], "img_size": [size, size]}
    architecture = Architecture(
        name=name,
        num_classes=10,
        model_args={"in_chans": 1, **arguments},
        preprocessing=Preprocessing(input_size=(1, size, size), mean=(0.3,), std=(0.4,)),
        label_names=tuple("0123456789"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_timm_folder(folder / f"{name}-{seed}", architecture, architecture.build().state_dict())
    return str(folder / f"{name}-{seed}")


def config(size: int | None) -> RunConfig:
    return RunConfig(
        data=DataConfig(train_size=128, test_size=64, image_size=size),
        star=StarConfig(epochs=1, batch_size=64, lr=0.01),
        evaluate=EvalConfig(points=3, source_pairs=0, bma_samples=2, batch_norm_images=64),
    )


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_sources_of_two_sizes_have_a_star_at_one(name: str, tmp_path: Path) -> None:
    refs = [make(tmp_path, name, size, seed) for seed, size in enumerate((16, 24, 16))]
    with pytest.raises(IncompatibleError, match=r"input_size .* \(1, 16, 16\) and \(1, 24, 24\)") as caught:
        fit_star(refs[:2], [], config(None), tmp_path / "star")
    assert "--image-size 24" in caught.value.hint
    plan = plan_star(refs[:2], refs[2:], config(24))
    assert {model.architecture.preprocessing.input_size for model in plan.models} == {(1, 24, 24)}
    folder = fit_star(refs[:2], refs[2:], config(24), tmp_path / "star").folder
    star = load_star(folder)
    assert star.manifest.architecture.preprocessing.input_size == (1, 24, 24)
    assert [model.preprocessing.input_size[1] for model in star.manifest.sources if model.preprocessing] == [16, 24]
    stated = f"stated are 16x16 pixels by {name}-0, {name}-2; 24x24 pixels by {name}-1."
    assert f"measured at 24x24 pixels; {stated}" in (folder / "README.md").read_text().replace("\n", " ").replace(
        "\\", ""
    )
    published = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(4, 1, 24, 24)
    with torch.no_grad():
        assert torch.equal(published(images), star.model()(images))
        points = star.domain()
        if name == "resnet18":
            points.set_batch_norm_images(images)
        assert points.predict(images, samples=2).shape == (4, 10)
    assert [check for check in verify_star(folder) if check.passed is not True] == []
    again = evaluate_star(str(folder)).manifest.evaluation
    assert again == star.manifest.evaluation
    [joined] = join_star(str(folder), make(tmp_path, name, 16, 3)).paths
    assert joined.loss[0] == star.manifest.evaluation.paths_of("star-heldout")[0].loss[0]


def test_models_without_data_are_aligned_at_one_size(run, tmp_path: Path) -> None:
    refs = [make(tmp_path, "resnet18", size, seed) for seed, size in enumerate((16, 24))]
    refused = run("align", *refs, "--out", tmp_path / "refused")
    assert refused.code == 5
    assert "--image-size 24" in refused.err
    assert run("align", *refs, "--out", tmp_path / "aligned", "--image-size", "24").code == 0
    aligned = timm.create_model(f"local-dir:{tmp_path / 'aligned/resnet18-1'}", pretrained=True)
    assert aligned.pretrained_cfg["input_size"] == (1, 24, 24)


def test_a_vit_that_states_its_size_in_its_configuration_alone(tmp_path: Path) -> None:
    ref = make(tmp_path, "vit_tiny_patch16_224", 224, 0)
    record = json.loads((Path(ref) / "config.json").read_text())
    del record["model_args"]["img_size"]
    (Path(ref) / "config.json").write_text(json.dumps(record))
    [source] = load_sources([ref], image_size=32)
    assert source.state["pos_embed"].shape[1] == 17
    assert source.architecture.preprocessing.input_size == (1, 32, 32)


def test_weights_are_resampled_as_timm_does(tmp_path: Path) -> None:
    ref = make(tmp_path, "vit_tiny_patch16_224", 16, 0)
    [source] = load_sources([ref], image_size=32)
    theirs = timm.create_model(f"local-dir:{ref}", pretrained=True, img_size=32).state_dict()
    assert source.state["pos_embed"].shape[1] == 17
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in source.state.items())


def test_a_network_of_one_size_is_refused(tmp_path: Path) -> None:
    refs = [make(tmp_path, "mixer_s32_224", size, seed) for seed, size in enumerate((32, 64))]
    with pytest.raises(IncompatibleError, match=r"mixer.*cannot take images of 64 x 64 pixels") as caught:
        load_sources(refs, image_size=64)
    assert "--image-size" in caught.value.hint


def test_the_option_is_there_where_models_come_together(run) -> None:
    for command in ("fit-star", "plan", "align", "train", "inspect"):
        assert "--image-size" in run(command, "--help").out
    assert "--image-size" not in run("join", "--help").out
