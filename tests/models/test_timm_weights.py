"""Weights are loaded as timm loads them: plain timm is the oracle."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor

from starzoo.models.compatibility import check_compatible
from starzoo.models.sources import load_source, load_sources
from starzoo.models.timm_folder import find_weights
from tests.conftest import MakeMember
from tests.timm_oracle import assert_as_timm, edit

State = dict[str, Tensor]


def rewrite(folder: Path, change: Callable[[State], State]) -> Path:
    """Write the weights of a folder anew."""
    state = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file({name: tensor.contiguous() for name, tensor in change(state).items()}, folder / "model.safetensors")
    return folder


def export(folder: Path, name: str, **arguments: Any) -> Path:
    """What timm's own exporter writes of an untrained network whose batch norm has run once."""
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments)
    save_for_hf(model, str(folder), safe_serialization=True)
    return folder


COUNTER = "num_batches_tracked"
CHANGES: dict[str, Callable[[State], State]] = {
    "no counters": lambda state: {name: tensor for name, tensor in state.items() if COUNTER not in name},
    "float counters": lambda state: {name: tensor.float() for name, tensor in state.items()},
    "counters of one axis": lambda state: {n: t.reshape(1) if COUNTER in n else t for n, t in state.items()},
    "half precision": lambda state: {n: t.half() if t.is_floating_point() else t for n, t in state.items()},
    "bfloat16": lambda state: {n: t.bfloat16() if t.is_floating_point() else t for n, t in state.items()},
    "a dead channel": lambda state: {
        **state,
        "bn1.running_var": state["bn1.running_var"].index_fill(0, torch.tensor(1), 0.0),
    },
    "DistributedDataParallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "torch.compile": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "both": lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_timm_loads_is_loaded_to_the_same_bits(make_member: MakeMember, change: Callable[[State], State]) -> None:
    assert_as_timm(rewrite(make_member(), change))


def test_the_prefix_of_lightning_is_taken_off_and_said(
    make_member: MakeMember, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_member()
    before = load_source(folder).state
    rewrite(folder, lambda state: {f"model.{name}": tensor for name, tensor in state.items()})
    with caplog.at_level(logging.WARNING):
        after = load_source(folder).state
    assert [record.message for record in caplog.records if "'model.'" in record.message]
    assert all(torch.equal(before[name], after[name]) for name in before)


def old_swin(state: State) -> State:
    """The names of timm 0.6, with the index tables that it stored."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", name)
        renamed[name.replace("head.fc.", "head.")] = tensor
        if name.endswith("relative_position_bias_table"):
            renamed[name.replace("bias_table", "index")] = torch.zeros(49, 49, dtype=torch.int64)
    return renamed


def old_convnext(state: State) -> State:
    """The names of the paper's own code."""
    table = {"stem.": "downsample_layers.0.", "head.fc.": "head.", "head.norm.": "norm.", "conv_dw": "dwconv"}
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        name = re.sub(r"stages\.(\d)\.blocks\.", r"stages.\1.", name).replace("mlp.fc", "pwconv")
        for ours, theirs in table.items():
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed


SWIN = {"embed_dim": 12, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 3, 4), "num_classes": 3}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "num_classes": 3}
RENAMED = {
    "Swin of timm 0.6": ("swin_tiny_patch4_window7_224", SWIN, old_swin),
    "ConvNeXt of the paper": ("convnext_atto", {**CONVNEXT, "conv_mlp": False}, old_convnext),
}


@pytest.mark.parametrize(("name", "arguments", "change"), RENAMED.values(), ids=RENAMED)
def test_tensors_that_timm_renames(
    tmp_path: Path, name: str, arguments: dict[str, Any], change: Callable[[State], State]
) -> None:
    folder = rewrite(export(tmp_path / "old", name, **arguments), change)
    assert_as_timm(folder)
    now = load_source(export(tmp_path / "now", name, **arguments)).state
    assert all(torch.equal(tensor, now[key]) for key, tensor in load_source(folder).state.items())


def test_a_position_embedding_of_another_size_is_resampled(tmp_path: Path) -> None:
    arguments = {"depth": 1, "embed_dim": 24, "num_heads": 3, "num_classes": 2}
    folder = export(tmp_path / "vit", "vit_tiny_patch16_224", img_size=64, **arguments)
    edit(folder, **{"model_args.img_size": 96, "pretrained_cfg.input_size": [3, 96, 96]})
    assert_as_timm(folder)
    assert load_source(folder).state["pos_embed"].shape == (1, 37, 24)


EXPORTS: dict[str, tuple[str, dict[str, Any]]] = {
    "without a head": ("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 24, "num_heads": 3, "num_classes": 0}),
    "batch norm's epsilon": ("efficientnet_lite0", {"bn_eps": 1e-3, "bn_momentum": 0.01, "num_classes": 2}),
    "a table among the arguments": (
        "resnet18",
        {"layers": (1, 1, 0, 0), "channels": (8,) * 4, "block_args": {"attn_layer": "se"}},
    ),
    "an epsilon that pretrained weights bring": ("fbnetc_100", {"num_classes": 2}),
    "one channel": ("test_vit", {"in_chans": 1, "img_size": 48}),
    "a deprecated name": ("mobilenetv3_small_075", {"num_classes": 2}),
}


@pytest.mark.parametrize(("name", "arguments"), EXPORTS.values(), ids=EXPORTS)
def test_exports_of_timm(tmp_path: Path, name: str, arguments: dict[str, Any]) -> None:
    assert_as_timm(export(tmp_path / "net", name, **arguments))


def test_a_fine_tuned_export_of_older_versions(make_member: MakeMember) -> None:
    folder = make_member()
    edit(folder, **{"pretrained_cfg.num_classes": 1000, "pretrained_cfg.custom_load": True, "pretrained_cfg.tag": "x"})
    edit(folder, wandb_run="x", pretrained_strict=False)
    assert_as_timm(folder)


def test_the_flat_config_of_timm_0_6(make_member: MakeMember) -> None:
    folder = make_member()
    config = (
        '{"architecture": "test_resnet", "num_classes": 3, "input_size": [1, 16, 16], "mean": [0.25], "std": [0.5], '
    )
    config += '"first_conv": "conv1.0", "classifier": "fc", "num_features": 96, "labels": ["a", "b", "c"]}'
    (folder / "config.json").write_text(config)
    rewrite(folder, lambda state: state)
    assert_as_timm(folder)
    assert load_source(folder).architecture.label_names == ("a", "b", "c")


def test_weights_under_the_names_that_timm_takes(make_member: MakeMember) -> None:
    folder = make_member()
    (folder / "model.safetensors").rename(folder / "open_clip_model.safetensors")
    assert_as_timm(folder)
    (folder / "open_clip_model.safetensors").rename(folder / "step_100.safetensors")
    assert_as_timm(folder)
    (folder / "permutations.safetensors").write_bytes(b"")
    assert find_weights(folder).name == "step_100.safetensors"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"img_size": 32}, {"img_size": [32, 32]}),
        ({"img_size": 32}, {"img_size": 32, "drop_path_rate": 0.1, "proj_drop_rate": 0.2, "pos_drop_rate": 0.1}),
        ({"img_size": 32}, {"img_size": 32, "norm_layer": None, "mlp_ratio": 4, "global_pool": "token", "in_chans": 3}),
        ({"img_size": 32}, {"img_size": 32, "weight_init": "jax", "fix_init": True}),
    ],
)
def test_one_network_in_two_notations(tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    small = {"depth": 1, "embed_dim": 24, "num_heads": 3, "num_classes": 2, "img_size": 32}
    folders = [export(tmp_path / name, "vit_tiny_patch16_224", **small) for name in "ab"]
    rewrite(folders[1], lambda state: {name: tensor + 1 for name, tensor in state.items()})
    for folder, arguments in zip(folders, (ours, theirs), strict=True):
        edit(folder, model_args={**small, **arguments})
    check_compatible(load_sources(folders))


@pytest.mark.parametrize(
    "other", [{"num_heads": 4}, {"act_layer": "relu"}, {"norm_layer": "rmsnorm"}, {"pre_norm": True}]
)
def test_another_network_of_the_same_shapes_is_another_network(tmp_path: Path, other: dict[str, Any]) -> None:
    from starzoo.models.architecture import Architecture

    small = {"depth": 1, "embed_dim": 24, "num_heads": 3, "img_size": 32}
    one, two = (
        Architecture(name="vit_tiny_patch16_224", num_classes=2, model_args=arguments)
        for arguments in (small, {**small, **other})
    )
    assert one.network != two.network
