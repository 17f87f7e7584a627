"""Faults and abuse of config.json: refused where they are dangerous or contradictory, else taken as timm takes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from starzoo.data.preprocessing import Preprocessing
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.models.architecture import Architecture
from starzoo.models.sources import load_source
from starzoo.models.timm_folder import save_timm_folder
from starzoo.strict_json import JSON_LIMIT, read_json
from tests.conftest import MakeMember
from tests.timm_oracle import assert_as_timm, edit

Change = dict[str, Any]


@pytest.fixture
def refuse(make_member: MakeMember) -> Callable[[Change, str], None]:
    """Assert that a folder is refused when keys of its config.json are replaced; dots lead into its objects."""

    def check(changes: Change, complaint: str) -> None:
        folder = make_member()
        edit(folder, **changes)
        with pytest.raises(UntrustedInputError, match=rf"seed-0: config.json: {complaint}") as caught:
            load_source(folder)
        assert caught.value.hint
        assert "\n" not in caught.value.message

    return check


Refuse = Callable[[Change, str], None]


@pytest.mark.parametrize("name", ["../resnet18", "/etc/passwd", "a:b", "hf-hub:eve/net", "resnet18.a/b", "", "x" * 200])
def test_c01_architecture_that_is_no_name(refuse: Refuse, name: str) -> None:
    refuse({"architecture": name}, "architecture '.*' is not a name of a timm model")


def test_c01_a_tag_and_a_deprecated_name_are_what_timm_takes_them_for(make_member: MakeMember) -> None:
    folder = make_member()
    edit(folder, architecture="test_resnet.some_tag")
    assert load_source(folder).architecture.name == "test_resnet"
    assert Architecture.from_registry("tf_efficientnet_b0_ns") == Architecture.from_registry("tf_efficientnet_b0")
    assert Architecture.from_registry("vit_tiny_patch16_224_in21k").num_classes == 21_843
    assert Architecture.from_registry("vit_tiny_patch16_384.augreg_in21k_ft_in1k").preprocessing.input_size[1] == 384


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("vit_huge_patch14_224_in21k.x", "Invalid pretrained tag"),
        ("vit_base_patch16_224_sam", "Invalid pretrained tag"),
        ("resnet18.nonsense", "Invalid pretrained tag"),
        ("perpetuum_mobile", "timm does not know this architecture"),
        ("efficientnet_b3_pruned.", "does not know|Invalid"),
    ],
)
def test_c01_names_of_the_command_line_that_timm_does_not_take(name: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        Architecture.from_registry(name)
    assert caught.value.hint


def test_c01_architecture_that_timm_does_not_know(make_member: MakeMember) -> None:
    folder = make_member()
    config = (folder / "config.json").read_text().replace('"test_resnet"', '"perpetuum_mobile"')
    (folder / "config.json").write_text(config)
    with pytest.raises(UntrustedInputError, match=r"seed-0: config.json: perpetuum_mobile: timm does not know"):
        load_source(folder)


@pytest.mark.parametrize("name", [["test_resnet"], None, 7, {"a": 1}, True])
def test_c02_architecture_of_another_type(refuse: Refuse, name: object) -> None:
    refuse({"architecture": name}, "architecture .* is not a name of a timm model")


@pytest.mark.parametrize("name", ["../../.ssh/id", "/etc/passwd", ["a", "b"], 7])
def test_c06_a_file_name_that_leaves_the_repository(refuse: Refuse, name: object) -> None:
    refuse({"pretrained_cfg.hf_hub_filename": name}, "pretrained_cfg.hf_hub_filename")


def test_c07_custom_load(refuse: Refuse) -> None:
    refuse({"pretrained_cfg.custom_load": "hf"}, "pretrained_cfg.custom_load 'hf' asks for another loader")


@pytest.mark.parametrize("value", [True, False, 1, "yes", None])
def test_c07_custom_load_that_loads_nothing_else(make_member: MakeMember, value: object) -> None:
    folder = make_member()
    edit(folder, **{"pretrained_cfg.custom_load": value})
    assert_as_timm(folder)


@pytest.mark.parametrize("place", ["pretrained_cfg.", "model_args."])
def test_c08_pretrained_strict(refuse: Refuse, place: str) -> None:
    refuse({f"{place}pretrained_strict": 1}, f"{place}pretrained_strict is not allowed")


def test_c08_missing_keys_where_timm_is_not_strict(tmp_path: Path) -> None:
    architecture = Architecture(name="dla34", num_classes=2, preprocessing=Preprocessing(input_size=(3, 32, 32)))
    state = architecture.build().state_dict()
    del state["level2.tree1.conv1.weight"]
    save_timm_folder(tmp_path / "seed-0", architecture, state)
    timm.create_model(f"local-dir:{tmp_path / 'seed-0'}", pretrained=True)  # with a random tensor in it
    with pytest.raises(UntrustedInputError, match=r"missing tensors \(1\): level2.tree1.conv1.weight"):
        load_source(tmp_path / "seed-0")


@pytest.mark.parametrize("changes", [{"model_args.num_classes": 4}, {"num_classes": 4, "model_args.num_classes": 3}])
def test_c09_class_counts_that_disagree(refuse: Refuse, changes: Change) -> None:
    refuse(changes, "class counts disagree: num_classes = .*build a classifier of")


def test_c09_a_class_count_that_disagrees_with_the_weights(make_member: MakeMember) -> None:
    folder = make_member()
    edit(folder, num_classes=4)
    with pytest.raises(
        UntrustedInputError, match=r"seed-0: model.safetensors: tensors of another shape \(2\): fc.bias"
    ):
        load_source(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"pretrained_cfg.num_classes": 4},
        {"pretrained_cfg.num_classes": "four"},
        {"pretrained_cfg.label_names": ["a", "b", "c", "d"]},
    ],
)
def test_c09_the_root_wins(make_member: MakeMember, changes: Change) -> None:
    folder = make_member()
    edit(folder, **changes)
    assert_as_timm(folder)
    assert load_source(folder).architecture.label_names == ("cat", "dog", "señor")


@pytest.mark.parametrize("value", [-1, 2.5, "3", True, None, 10**9])
def test_c09_class_counts_that_are_none(refuse: Refuse, value: object) -> None:
    refuse({"num_classes": value}, "num_classes is ")


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["a", "b", "c"], ("a", "b", "c")),
        ([1, 2, 3], ("1", "2", "3")),
        ({"0": "a", "1": "b", "2": "c"}, ("a", "b", "c")),
        (["LABEL_0", "LABEL_1", "LABEL_2"], None),
        (["a", "b"], None),
        ({"0": 1}, None),
        ("abc", None),
        (7, None),
        (["a", None, "c"], None),
    ],
)
def test_c09_label_names_are_whatever_timm_takes(make_member: MakeMember, names: object, read: object) -> None:
    folder = make_member()
    edit(folder, label_names=names)
    assert_as_timm(folder)
    assert load_source(folder).architecture.label_names == read


@pytest.mark.parametrize("key", ["kwargs_filter", "features_only", "feature_cls", "pretrained_strict", "custom_load"])
def test_c10_keys_of_the_root_that_load_nothing(make_member: MakeMember, key: str) -> None:
    folder = make_member()
    edit(folder, **{key: ["num_classes"]})
    assert_as_timm(folder)


@pytest.mark.parametrize("key", ["kwargs_filter", "features_only", "feature_cls"])
@pytest.mark.parametrize("place", ["pretrained_cfg.", "model_args."])
def test_c10_keys_that_load_another_model(refuse: Refuse, place: str, key: str) -> None:
    refuse({f"{place}{key}": ["num_classes"]}, f"{place}{key} is not allowed")


@pytest.mark.parametrize(
    "key", ["checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir", "scriptable", "device"]
)
@pytest.mark.parametrize("place", ["pretrained_cfg.", "model_args."])
def test_c11_keys_that_are_not_a_networks(refuse: Refuse, place: str, key: str) -> None:
    refuse({f"{place}{key}": "x"}, f"{place}{key} is not allowed")


def test_c11_unknown_keys(refuse: Refuse) -> None:
    refuse({"pretrained_cfg.wings": "x"}, "pretrained_cfg.wings is not allowed")
    refuse({"model_args.wings": "x"}, "test_resnet: timm cannot build it .*unexpected keyword argument 'wings'")


@pytest.mark.parametrize(
    "value", [10**6, -(10**6), ["a" * 100], [[[[1]]]], [1] * 100, {"a": "x" * 61}, "a/b", "os:system"]
)
def test_c12_arguments_that_are_no_small_values(refuse: Refuse, value: object) -> None:
    refuse({"model_args.stem_width": value}, "model_args.stem_width has the value")


def test_c12_time_bomb(refuse: Refuse) -> None:
    refuse({"model_args.layers": [1, 1, 1, 20_000]}, "its arguments ask for more than 30,000 layers")


def test_c12_memory_bomb(make_member: MakeMember) -> None:
    folder = make_member()
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["channels"] = [65_536] * 4
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UntrustedInputError, match=r"seed-0: model.safetensors: missing tensors .*layer1.0.downsample"):
        load_source(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("first_conv", "layer1"), ("classifier", "head"), ("classifier", ["fc", "x"]), ("classifier", 7)]
)
def test_c13_layer_names_that_are_not_timms(make_member: MakeMember, key: str, value: object) -> None:
    folder = make_member()
    edit(folder, **{f"pretrained_cfg.{key}": value})
    assert_as_timm(folder)


def test_c13_label_offset(make_member: MakeMember) -> None:
    folder = make_member()
    edit(folder, **{"pretrained_cfg.label_offset": 1})
    with pytest.raises(UntrustedInputError, match=r"seed-0: model.safetensors: timm cannot load it"):
        load_source(folder)
    state = load_file(folder / "model.safetensors")
    grown = {name: torch.cat([tensor[:1], tensor]) for name, tensor in state.items() if name.startswith("fc.")}
    save_file({**state, **grown}, folder / "model.safetensors")
    assert_as_timm(folder)
    edit(folder, **{"pretrained_cfg.classifier": "head"})
    with pytest.raises(UntrustedInputError, match=r"seed-0: model.safetensors: "):
        load_source(folder)


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[1, 2]",
        b'"text"',
        b'{"architecture": NaN}',
        b'{"crop_pct": Infinity}',
        b'{"crop_pct": 1e999}',
        b'{"a": 1, "a": 2}',
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b"",
    ],
    ids=["cut", "list", "text", "NaN", "Infinity", "1e999", "twice", "deep lists", "deep objects", "no text", "empty"],
)
def test_c14_text_that_is_no_object(make_member: MakeMember, text: bytes) -> None:
    folder = make_member()
    (folder / "config.json").write_bytes(text)
    with pytest.raises(
        UntrustedInputError, match=r"seed-0.config.json: (is not valid JSON|expected an object|is nested too deeply)"
    ):
        load_source(folder)


def test_c14_size_is_limited_before_parsing(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"{" + b" " * (JSON_LIMIT - 2) + b"}")
    assert read_json(path) == {}
    path.write_bytes(b"{" + b" " * (JSON_LIMIT - 1) + b"}")
    with pytest.raises(UntrustedInputError, match=r"config.json: expected at most 10,000,000 bytes"):
        read_json(path)


@pytest.mark.parametrize("section", ["pretrained_cfg", "model_args"])
def test_sections_of_another_type(refuse: Refuse, section: str) -> None:
    refuse({section: [1]}, f"{section}: expected an object, got list")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input_size", [1, 16]),
        ("input_size", [1, 16, 0]),
        ("input_size", [1, 16, 1e3]),
        ("mean", []),
        ("mean", ["a"]),
        ("std", [0]),
        ("std", [-1.0]),
        ("interpolation", "magic"),
        ("interpolation", "random"),
        ("interpolation", ["bicubic"]),
        ("crop_mode", "../x"),
        ("crop_pct", 0),
        ("crop_pct", "1"),
    ],
)
def test_impossible_preprocessing(refuse: Refuse, key: str, value: object) -> None:
    refuse({f"pretrained_cfg.{key}": value}, f"pretrained_cfg.{key} is ")
    refuse({"pretrained_cfg.input_size": 16}, "timm cannot read it: TypeError")


@pytest.mark.parametrize("key", ["mean", "std"])
def test_preprocessing_of_other_channels_is_averaged_as_timm_does(make_member: MakeMember, key: str) -> None:
    folder = make_member()
    edit(folder, **{f"pretrained_cfg.{key}": [0.25, 0.5, 0.75]})
    assert getattr(load_source(folder).architecture.preprocessing, key) == (0.5,)


def test_arguments_that_timm_cannot_build(refuse: Refuse) -> None:
    refuse({"model_args.layers": [1]}, "test_resnet: timm cannot build it")
    refuse({"model_args.layers": "many"}, "test_resnet: timm cannot build it")
    refuse({"model_args.act_layer": "nothing"}, "test_resnet: timm cannot build it")
    refuse({"model_args.in_chans": None}, "test_resnet: timm cannot build it")


@pytest.mark.parametrize(
    ("name", "changes", "what"),
    [
        ("test_resnet", {"pretrained_cfg.input_size": [3, 8000, 8000]}, "activations for one image"),
        ("swin_tiny_patch4_window7_224", {"model_args": {"img_size": [65536, 65536]}}, "buffers"),
        ("swinv2_tiny_window8_256", {"model_args": {"window_size": 300, "img_size": 1200}}, "buffers"),
        ("beit_base_patch16_224", {"model_args": {"img_size": 2048}}, "buffers"),
        ("vit_tiny_patch16_224", {"model_args": {"img_size": 65536}}, "activations for one image"),
    ],
)
def test_h06_sizes_are_judged_before_memory_is_taken(refuse: Refuse, name: str, changes: Change, what: str) -> None:
    refuse({"architecture": name, **changes}, rf"its {what} would take [\d.,]+ GB")


def test_h06_a_network_of_timm_may_be_as_large_as_it_is() -> None:
    config = {"architecture": "samvit_base_patch16", "pretrained_cfg": {"input_size": [3, 1024, 1024]}}
    assert Architecture.from_config(config, "folder").preprocessing.input_size == (3, 1024, 1024)


def test_h06_no_weight_is_read_for_a_network_larger_than_its_file(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_member()
    edit(folder, architecture="vit_tiny_patch16_224", model_args={"embed_dim": 49152, "num_heads": 3})
    monkeypatch.setattr("safetensors.torch.load_file", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(UntrustedInputError, match="missing tensors"):
        load_source(folder)
