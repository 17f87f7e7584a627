"""Faults and abuse of config.json: what must be refused before timm sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from starzoo.errors import UntrustedInputError
from starzoo.hub.strict_json import JSON_LIMIT, read_json
from starzoo.sources import load_source
from tests.conftest import MakeMember

Change = dict[str, Any]


@pytest.fixture
def refuse(make_member: MakeMember) -> Callable[[Change, str], None]:
    """Assert that a folder is refused when keys of its config.json are replaced; dots lead into its objects."""

    def check(changes: Change, complaint: str) -> None:
        folder = make_member()
        config = json.loads((folder / "config.json").read_text())
        for path, value in changes.items():
            *sections, key = path.split(".")
            table = config
            for section in sections:
                table = table[section]
            table[key] = value
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UntrustedInputError, match=rf"seed-0: config.json: {complaint}") as caught:
            load_source(folder)
        assert caught.value.hint
        assert "\n" not in caught.value.message

    return check


Refuse = Callable[[Change, str], None]


@pytest.mark.parametrize(
    "name", ["../resnet18", "/etc/passwd", "a:b", "hf-hub:eve/net", "resnet18.a1_in1k", "", "x" * 200]
)
def test_c01_architecture_that_is_no_name(refuse: Refuse, name: str) -> None:
    refuse({"architecture": name}, "architecture '.*' is no name of a timm model")


def test_c01_architecture_that_timm_does_not_know(make_member: MakeMember) -> None:
    folder = make_member()
    config = (folder / "config.json").read_text().replace('"test_resnet"', '"perpetuum_mobile"')
    (folder / "config.json").write_text(config)
    with pytest.raises(UntrustedInputError, match=r"seed-0: config.json names the architecture 'perpetuum_mobile'"):
        load_source(folder)


@pytest.mark.parametrize("name", [["test_resnet"], None, 7, {"a": 1}, True])
def test_c02_architecture_of_another_type(refuse: Refuse, name: object) -> None:
    refuse({"architecture": name}, "architecture .* is no name of a timm model")


@pytest.mark.parametrize("name", ["../../.ssh/id", "/etc/passwd", ["a", "b"], 7])
def test_c06_a_file_name_that_leaves_the_repository(refuse: Refuse, name: object) -> None:
    refuse({"pretrained_cfg.hf_hub_filename": name}, "pretrained_cfg.hf_hub_filename")


@pytest.mark.parametrize("value", [True, "hf", 1])
def test_c07_custom_load(refuse: Refuse, value: object) -> None:
    refuse({"pretrained_cfg.custom_load": value}, "pretrained_cfg.custom_load .* is not allowed")


@pytest.mark.parametrize("place", ["", "pretrained_cfg.", "model_args."])
def test_c08_pretrained_strict(refuse: Refuse, place: str) -> None:
    refuse({f"{place}pretrained_strict": 1}, f"{place}pretrained_strict is not allowed")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 4},
        {"pretrained_cfg.num_classes": 4},
        {"model_args.num_classes": 4},
        {"label_names": ["a", "b"]},
        {"pretrained_cfg.label_names": ["a", "b", "c", "d"]},
    ],
)
def test_c09_class_counts_that_disagree(refuse: Refuse, changes: Change) -> None:
    refuse(changes, "class counts disagree: .*num_classes = ")


@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True, 10**9])
def test_c09_class_counts_that_are_none(refuse: Refuse, value: object) -> None:
    refuse({"num_classes": value}, "num_classes is ")


@pytest.mark.parametrize("names", ["abc", [1, 2, 3], {"0": 1}, 7])
def test_c09_label_names_that_are_no_names(refuse: Refuse, names: object) -> None:
    refuse({"label_names": names}, "label_names is no list of names")


@pytest.mark.parametrize("key", ["kwargs_filter", "features_only", "feature_cls"])
@pytest.mark.parametrize("place", ["", "pretrained_cfg.", "model_args."])
def test_c10_keys_that_load_another_model(refuse: Refuse, place: str, key: str) -> None:
    refuse({f"{place}{key}": ["num_classes"]}, f"{place}{key} is not allowed")


@pytest.mark.parametrize(
    "key", ["checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir", "scriptable", "device", "wings"]
)
@pytest.mark.parametrize("place", ["pretrained_cfg.", "model_args."])
def test_c11_unknown_keys(refuse: Refuse, place: str, key: str) -> None:
    refuse({f"{place}{key}": "x"}, f"{place}{key} is not allowed")


@pytest.mark.parametrize("value", [10**6, -(10**6), ["a" * 100], [[[[1]]]], [1] * 100, {"a": 1}, "a/b", "os:system"])
def test_c12_arguments_that_are_no_small_values(refuse: Refuse, value: object) -> None:
    refuse({"model_args.stem_width": value}, "model_args.stem_width has the value")


def test_c12_time_bomb(refuse: Refuse) -> None:
    refuse({"model_args.layers": [1, 1, 1, 60_000]}, "model_args.layers asks for 60,003 blocks")


def test_c12_memory_bomb(make_member: MakeMember) -> None:
    folder = make_member()
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["channels"] = [65_536] * 4
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UntrustedInputError, match=r"seed-0: model.safetensors: missing tensors .*layer1.0.downsample"):
        load_source(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("first_conv", "layer1"), ("classifier", "head"), ("classifier", ["fc", "x"])]
)
def test_c13_layer_names_that_are_not_timms(refuse: Refuse, key: str, value: object) -> None:
    refuse({f"pretrained_cfg.{key}": value}, f"pretrained_cfg.{key} is .*, but test_resnet has '(conv1.0|fc)'")


def test_c13_label_offset(refuse: Refuse) -> None:
    refuse({"pretrained_cfg.label_offset": 1}, "pretrained_cfg.label_offset 1 is not allowed")


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
        UntrustedInputError, match=r"seed-0.config.json: (is not valid JSON|holds a|is nested too deeply)"
    ):
        load_source(folder)


def test_c14_size_is_limited_before_parsing(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"{" + b" " * (JSON_LIMIT - 2) + b"}")
    assert read_json(path) == {}
    path.write_bytes(b"{" + b" " * (JSON_LIMIT - 1) + b"}")
    with pytest.raises(UntrustedInputError, match=r"config.json: is larger than 1,000,000 bytes"):
        read_json(path)


@pytest.mark.parametrize("section", ["pretrained_cfg", "model_args"])
def test_sections_of_another_type(refuse: Refuse, section: str) -> None:
    refuse({section: [1]}, "pretrained_cfg and model_args must be objects")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input_size", [1, 16]),
        ("input_size", [1, 16, 0]),
        ("input_size", [1, 16, 1e3]),
        ("input_size", 16),
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
        ("fixed_input_size", "yes"),
    ],
)
def test_impossible_preprocessing(refuse: Refuse, key: str, value: object) -> None:
    refuse({f"pretrained_cfg.{key}": value}, f"pretrained_cfg.{key} is ")


@pytest.mark.parametrize("key", ["mean", "std"])
def test_preprocessing_of_other_channels(refuse: Refuse, key: str) -> None:
    refuse({f"pretrained_cfg.{key}": [0.5, 0.5, 0.5]}, f"pretrained_cfg.{key} has 3 numbers for 1 channels")
    several = {"pretrained_cfg.input_size": [3, 16, 16], "model_args.in_chans": 3}
    refuse({**several, f"pretrained_cfg.{key}": [0.5, 0.5]}, f"pretrained_cfg.{key} has 2 numbers for 3 channels")


def test_arguments_that_timm_cannot_build(refuse: Refuse) -> None:
    refuse({"model_args.layers": [1]}, "test_resnet: timm cannot build it")
    refuse({"model_args.layers": "many"}, "test_resnet: timm cannot build it")
    refuse({"model_args.act_layer": "nothing"}, "test_resnet: timm cannot build it")
    refuse({"model_args.in_chans": None}, "input_size.0: Input should be a valid integer")
