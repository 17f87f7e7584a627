from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from starzoo.data.preprocessing import Preprocessing
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.models.architecture import Architecture

SMALL = Preprocessing(input_size=(3, 32, 32), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_pct=0.9)

ARCHITECTURES = {
    "one channel, fewer blocks": Architecture(
        name="test_resnet",
        num_classes=3,
        model_args={"in_chans": 1, "layers": [1, 1, 0, 0]},
        preprocessing=Preprocessing(input_size=(1, 16, 16), mean=(0.5,), std=(0.5,), interpolation="bilinear"),
        label_names=("a", "b", "ü"),
    ),
    "fixed size": Architecture(
        name="vit_tiny_patch16_224", num_classes=2, model_args={"img_size": [32, 32]}, preprocessing=SMALL
    ),
    "fixed size as one number": Architecture(
        name="test_vit", num_classes=2, model_args={"img_size": 32}, preprocessing=SMALL
    ),
    "size as a hint": Architecture(name="test_vit", num_classes=2, model_args={"img_size": 32}, preprocessing=SMALL),
    "other pooling": Architecture(
        name="test_convnext", num_classes=5, model_args={"global_pool": "max"}, preprocessing=SMALL
    ),
    "pooling that other arguments need": Architecture(
        name="test_vit",
        num_classes=2,
        model_args={"class_token": False, "global_pool": "avg", "img_size": [32, 32]},
        preprocessing=SMALL,
    ),
    "nothing special": Architecture(name="test_efficientnet", num_classes=7, preprocessing=SMALL),
    "deep stem": Architecture(
        name="resnet18", num_classes=4, model_args={"stem_type": "deep", "stem_width": 8}, preprocessing=SMALL
    ),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_config_json_is_read_back(architecture: Architecture) -> None:
    config = json.loads(json.dumps(architecture.config()))
    assert Architecture.from_config(config, "here") == architecture


def test_config_says_nothing_that_the_registry_says_about_other_weights() -> None:
    architecture = Architecture(name="resnet18", num_classes=10, preprocessing=SMALL)
    registry = architecture.build_meta().pretrained_cfg
    inherited = ["tag", "license", "paper_ids", "origin_url", "test_input_size", "test_crop_pct", "hf_hub_id", "url"]
    assert registry["hf_hub_id"], "the registry has something to inherit"
    pretrained = architecture.config()["pretrained_cfg"]
    assert not [key for key in inherited if key in pretrained]
    assert (pretrained["first_conv"], pretrained["classifier"]) == ("conv1", "fc")
    assert pretrained["input_size"] == [3, 32, 32]
    assert pretrained["num_classes"] == 10


def test_config_carries_further_root_keys() -> None:
    assert ARCHITECTURES["nothing special"].config(made_by="starzoo")["made_by"] == "starzoo"


def test_two_exports_of_one_model_are_equal_whatever_defaults_they_spell_out() -> None:
    short = ARCHITECTURES["nothing special"]
    config = short.config()
    config["model_args"] = {"in_chans": 3, "global_pool": "avg", "num_classes": 7}
    assert Architecture.from_config(config, "here").network == short.network


@pytest.mark.parametrize("stated", [{}, {"fixed_input_size": False}, {"fixed_input_size": True}])
def test_the_default_size_is_the_same_model_however_it_is_stated(stated: dict[str, bool]) -> None:
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "model_args": {"img_size": 224}}
    read = Architecture.from_config({**config, "pretrained_cfg": {"input_size": [3, 224, 224], **stated}}, "here")
    assert read.network == Architecture(name="vit_tiny_patch16_224", num_classes=3).network
    assert Architecture.from_config(read.config(), "here") == read


def test_timm_exports_are_read(tmp_path: Any) -> None:
    import timm
    from timm.models import save_for_hf

    model = timm.create_model("test_vit", num_classes=4, img_size=64, in_chans=1)
    save_for_hf(
        model,
        str(tmp_path),
        model_config={"label_names": ["a", "b", "c", "d"]},
        safe_serialization=True,
        data_config={"input_size": (1, 64, 64)},
    )
    config = json.loads((tmp_path / "config.json").read_text())
    architecture = Architecture.from_config(config, "here")
    assert architecture.label_names == ("a", "b", "c", "d")
    assert architecture.preprocessing.input_size == (1, 64, 64)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == architecture.shapes


def test_label_names_as_a_table_by_index() -> None:
    config = ARCHITECTURES["fixed size"].config()
    config["label_names"] = {"1": "dog", "0": "cat"}
    assert Architecture.from_config(config, "here").label_names == ("cat", "dog")
    config["label_names"] = {"7": "dog", "0": "cat"}
    assert Architecture.from_config(config, "here").label_names is None
    config["label_names"] = {"0": "cat"}  # of two outputs
    assert Architecture.from_config(config, "here").label_names is None


def test_a_fixed_input_size_must_be_the_one_of_the_preprocessing() -> None:
    with pytest.raises(UsageError, match=r"built for images of 224x224 pixels.*32x32"):
        Architecture(name="vit_tiny_patch16_224", num_classes=2, preprocessing=SMALL).config()


def test_meta_tensors_take_no_memory_and_name_the_counters() -> None:
    architecture = ARCHITECTURES["one channel, fewer blocks"]
    assert all(tensor.device == torch.device("meta") for tensor in architecture.build_meta().state_dict().values())
    assert {name.rpartition(".")[2] for name in architecture.network.integers} == {"num_batches_tracked"}


def test_unknown_arguments_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"test_resnet: timm cannot build it"):
        Architecture(name="test_resnet", num_classes=2, model_args={"wings": 2}).build()


def test_arguments_of_another_family_are_refused_in_a_config() -> None:
    config = ARCHITECTURES["one channel, fewer blocks"].config()
    config["model_args"] = {"patch_size": 4}
    with pytest.raises(UntrustedInputError, match=r"here: config.json: test_resnet: timm cannot build it"):
        Architecture.from_config(config, "here")


def test_a_copy_with_other_values_has_the_tensors_and_symmetries_of_these():
    small = Architecture.from_registry("test_resnet", image_size=96)
    fewer = small.model_copy(update={"num_classes": 7})
    assert (small.network, small.spec) != (fewer.network, fewer.spec)
    copies = [small.model_copy(update={"num_classes": 7}), small.model_copy(update={"label_names": None})]
    assert [(copy.network, copy.spec) for copy in copies] == [(fewer.network, fewer.spec), (small.network, small.spec)]
